"""Whether somebody keeps the host's clock: adjtimex(2)."""

from __future__ import annotations

import ctypes

from jobworker.kernel.syscalls import checked

_UNSYNCHRONIZED = 0x40


class _Timex(ctypes.Structure):
    """struct timex, of which the beginning is read; nothing is set without modes."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 32),
    )


def is_kept() -> bool:
    """True if NTP, or something like it, has told the kernel that the clock is right.

    Raises:
        OSError: it can't be asked.
    """
    timex = _Timex()
    checked(ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)), "adjtimex")
    return not timex.status & _UNSYNCHRONIZED

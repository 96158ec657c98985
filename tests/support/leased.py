"""A program that whoever executes it has to wait for, until it is let go (fcntl(2), leases)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import struct
import threading
from collections.abc import Iterator

_ASKED = signal.SIGURG
# asm-generic/fcntl.h
_F_SETOWN_EX, _F_OWNER_TID = 15, 0
_DEADLINE = 60


class Leased:
    """A copy of a program.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: str, program: str) -> None:
        self.path = path
        shutil.copy(program, path)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # To this thread: another one, which does not block it, would take it away.
        fcntl.fcntl(self._fd, _F_SETOWN_EX, struct.pack("ii", _F_OWNER_TID, threading.get_native_id()))
        fcntl.fcntl(self._fd, fcntl.F_SETSIG, _ASKED)
        fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def wait_until_asked(self) -> None:
        """Until somebody is about to execute it, and waits; the kernel says so once."""
        assert signal.sigtimedwait([_ASKED], _DEADLINE), "nobody has asked"

    def let_go(self) -> None:
        """Whoever waits goes on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextlib.contextmanager
def leased(path: str, program: str) -> Iterator[Leased]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [_ASKED])
    try:
        copy = Leased(path, program)
        try:
            yield copy
        finally:
            copy.let_go()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

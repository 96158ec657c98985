"""A network namespace that a test has for itself: whatever it does to it, the host's network stays as it is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

needs_nft = pytest.mark.skipif(
    shutil.which("nft", path="/usr/sbin:/sbin") is None, reason="needs nft (Debian's package nftables)"
)

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def namespace(*addresses: str) -> Iterator[None]:
    """What this thread opens, and the processes that it starts, have a network of their own.

    Args:
        addresses: ADDRESS/BITS that its loopback device has beside 127.0.0.0/8 and ::1.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(_CLONE_NEWNET))
        try:
            _ip("link", "set", "lo", "up")
            for address in addresses:
                # Without looking whether somebody else has it, which takes a second.
                _ip("address", "add", address, "dev", "lo", "nodad")
            yield
        finally:
            _check(_libc.setns(before, _CLONE_NEWNET))
    finally:
        os.close(before)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _check(result: int) -> None:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))

"""A tracer that takes no notice of what it traces; ptrace(2)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator

_SEIZE = 0x4206


@contextlib.contextmanager
def seized(pid: int) -> Iterator[None]:
    """Have a process traced meanwhile: its end is hidden from its parent until this one's."""
    libc = ctypes.CDLL(None, use_errno=True)
    reading, writing = os.pipe()
    if (tracer := os.fork()) == 0:
        # It holds nothing of the caller's open.
        os.dup2(writing, 1)
        os.closerange(3, 1024)
        os.write(1, b"%d" % libc.ptrace(_SEIZE, pid, 0, 0))
        while True:
            signal.pause()
    os.close(writing)
    try:
        assert os.read(reading, 10) == b"0"
        yield
    finally:
        os.close(reading)
        os.kill(tracer, signal.SIGKILL)
        os.waitpid(tracer, 0)

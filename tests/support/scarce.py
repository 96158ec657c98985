"""Hosts that are short of descriptors, to the last one, and what is left of an attempt there."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# More than what is attempted needs.
MOST = 10


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """Have no more than so many descriptors be opened."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + MOST, before[1]))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    """The pids of this process's, also of those that have ended and were not waited for."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(file.read().split())

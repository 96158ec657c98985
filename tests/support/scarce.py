"""Hosts that are short of descriptors, to the last one, and what is left of an attempt there."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

# More than what is attempted needs.
MOST = 10


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """Have no more than so many descriptors be opened."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A new one has the lowest number that is free.
    free = [os.open("/", os.O_PATH | os.O_CLOEXEC) for _ in range(count + 1)]
    for fd in free:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    """The pids of this process's, also of those that have ended and were not waited for."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(file.read().split())

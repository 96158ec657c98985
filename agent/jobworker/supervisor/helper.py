"""Processes of the supervisor's own for what takes its time: the disk's.

A helper is forked, so that it has this code in memory already, and holds nothing but what it is given. It is the
keeper's to reap, also when the supervisor meanwhile executes another program.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from jobworker.kernel import syscalls

_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


def start(name: str, fds: tuple[int, ...], work: Callable[[], None]) -> None:
    """Fork a helper.

    Args:
        name: what ps calls it.
        fds: all that it holds; they become its descriptors 0 and following.
        work: its life.
    """

    def alone() -> None:
        for number, fd in enumerate([os.dup(fd) for fd in fds]):
            os.dup2(fd, number)
        syscalls.close_range(len(fds))
        work()

    fork(name, alone)


def fork(name: str, work: Callable[[], None]) -> None:
    """Fork a helper that holds all that the supervisor does."""
    child = os.fork()
    if child == 0:
        # Twice, and nobody here has to wait for it.
        if os.fork() == 0:
            _live(name, work)
        os._exit(0)
    os.waitpid(child, 0)


def _live(name: str, work: Callable[[], None]) -> None:
    """Never returns."""
    status = 1
    try:
        syscalls.set_name(name)
        for signum in _HANDLED:
            signal.signal(signum, signal.SIG_IGN)
        work()
        status = 0
    finally:
        os._exit(status)

"""Processes of the supervisor's own for what takes its time: the disk's.

A helper is forked, so that it has this code in memory already, and holds nothing but what it is given. It is the
keeper's to reap, also when the supervisor meanwhile executes another program.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

from jobworker.kernel import oom, syscalls

_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


def start(name: str, fds: tuple[int, ...], work: Callable[[], None]) -> None:
    """Fork a helper.

    Args:
        name: what ps calls it.
        fds: all that it holds; they become its descriptors 0 and following.
        work: its life.

    Raises:
        OSError: there is no process for it.
    """

    def alone() -> None:
        # It can be done without for a while, and what it works on jobs have made: rather it than anybody else.
        oom.reset_score()
        for number, fd in enumerate([os.dup(fd) for fd in fds]):
            os.dup2(fd, number)
        syscalls.close_range(len(fds))
        work()

    fork(name, alone)


def start_telling(name: str, fds: tuple[int, ...], work: Callable[[], None]) -> int:
    """Start a helper; the reading end of a pipe whose other end is its last descriptor, and closes with its end.

    Raises:
        OSError: there is no process for it, or no pipe.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        start(name, (*fds, writing), work)
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return reading


def fork(name: str, work: Callable[[], None]) -> None:
    """Fork a helper that holds all that the supervisor does.

    Raises:
        OSError: there is no process for it.
    """
    child = os.fork()
    if child == 0:
        _fork_again(name, work)
    error = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if error > 0:
        raise OSError(error, os.strerror(error))


def _fork_again(name: str, work: Callable[[], None]) -> None:
    """Fork the helper, which nobody has to wait for then, and end; with the error's number if there is none."""
    status = 0
    try:
        if os.fork() == 0:
            _live(name, work)
    except OSError as error:
        status = error.errno or errno.EAGAIN
    finally:
        os._exit(status)


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

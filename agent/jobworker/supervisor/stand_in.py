"""Who moves the jobs' output while the supervisor executes its next version, longer than a flood should wait.

A child that is forked right before does nothing else, over the same pipes and logs. It has the state directory's
lock, so that no supervisor writes as long as it does, and ends when the next one closes the connection, or dies.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterable

from jobworker.jobs import Source
from jobworker.supervisor import helper
from jobworker.supervisor.output import OutputLog

# A pipe, who writes to it, and where its bytes go.
Stream = tuple[int, Source, OutputLog]


def start(streams: Iterable[Stream]) -> int:
    """Start one; the connection that stops it when it is closed, and that the next program is to inherit."""
    ours, theirs = socket.socketpair()

    def work() -> None:
        # Or it would never see that the other end is closed.
        ours.close()
        _pump(theirs, streams)

    # Without it the output waits in its pipes, as it does after a death.
    with contextlib.suppress(OSError):
        helper.fork("jw-stand-in", work)
    theirs.close()
    os.set_inheritable(ours.fileno(), True)
    return ours.detach()


def _pump(connection: socket.socket, streams: Iterable[Stream]) -> None:
    poll = select.epoll()
    poll.register(connection.fileno(), select.EPOLLIN)
    waiting = {pipe: (source, log) for pipe, source, log in streams}
    for pipe in waiting:
        poll.register(pipe, select.EPOLLIN)
    while connection.fileno() not in (ready := [fd for fd, _ in poll.poll()]):
        for pipe in ready:
            if not _move(pipe, *waiting[pipe]):
                poll.unregister(pipe)


def _move(pipe: int, source: Source, log: OutputLog) -> bool:
    try:
        return log.pump(pipe, source)
    except BlockingIOError:
        return True

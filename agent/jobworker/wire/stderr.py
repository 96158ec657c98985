"""Standard error, written to without waiting for who reads it.

Whether a write waits (O_NONBLOCK) belongs to the open file, which others have as well, a shell or the gateway;
so it is not to be changed there. A socket can be told with each write; of a pipe or a terminal there is an open
file of our own to be had.
"""

from __future__ import annotations

import io
import os
import select
import socket
import stat
import sys
from collections.abc import Callable
from functools import partial

_OWN = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class StandardError:
    """Takes lines, each as a whole or not at all."""

    def __init__(self) -> None:
        self._send = _sender()
        # Of a line that there was no room for the end of; it comes before any other.
        self._rest = b""

    def write(self, line: bytes) -> bool:
        """Write a line; False if it is lost, since there is no room now, or nobody to read it."""
        if not self._finish():
            return False
        self._rest = line
        if not self._finish() and len(self._rest) == len(line):
            self._rest = b""
            return False
        return True

    def _finish(self) -> bool:
        try:
            while self._rest:
                self._rest = self._rest[self._send(self._rest) :]
        except OSError:
            return False
        return True


class _Text(io.TextIOBase):
    """As the interpreter writes to it, in pieces."""

    def __init__(self) -> None:
        self._stderr = StandardError()

    def write(self, text: str) -> int:
        self._stderr.write(text.encode(errors="backslashreplace"))
        return len(text)


def replace() -> None:
    """Have nothing in this process wait for who reads standard error, be it the traceback that it ends with."""
    sys.stderr = _Text()


def _sender() -> Callable[[bytes], int]:
    """What writes as much as there is room for, and raises BlockingIOError when there is none."""
    try:
        mode = os.fstat(2).st_mode
        if stat.S_ISSOCK(mode):
            sock = socket.socket(fileno=os.dup(2))
            return lambda data: sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            return partial(os.write, os.open("/proc/self/fd/2", _OWN))
    except OSError:
        # It is another user's.
        return _write_shared
    return partial(os.write, 2)


def _write_shared(data: bytes) -> int:
    # A pipe is called writable when so much fits: this waits only where another process takes that room first, and
    # in front of a terminal that has nearly none.
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError
    return os.write(2, data[: select.PIPE_BUF])

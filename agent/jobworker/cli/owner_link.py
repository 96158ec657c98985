"""A connection of the supervisor's own user to the supervisor."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from jobworker.errors import AgentUnavailable, JobWorkerError
from jobworker.wire import frames, messages, sockets


class OwnerLink:
    """Blocking, one request at a time; the supervisor may be of another version.

    Args:
        path: of the supervisor's socket.
        attend: the supervisor stays for as long as this connection does, see `Control`.

    Attributes:
        version: of the supervisor's program.

    Raises:
        OSError: nobody listens there, or not for this user.
        JobWorkerError: the supervisor does not want us.
    """

    def __init__(self, path: str, *, attend: bool = False) -> None:
        self._sock = sockets.connect(path)
        self._sock.setblocking(True)
        try:
            self.version: str = self.ask(messages.Control(attend)).version
        except (OSError, JobWorkerError):
            self._sock.close()
            raise

    def ask(self, request: Any) -> Any:
        """Send a request and wait for its answer.

        Raises:
            JobWorkerError: what the supervisor answered, or that it is gone.
        """
        try:
            sockets.send(self._sock, frames.encode(request, 1))
            frame = frames.receive(self._sock, messages.ANSWERS)
        except ConnectionError:
            frame = None
        if frame is None:
            raise AgentUnavailable("the supervisor has closed the connection")
        frame.fds.close()
        if isinstance(frame.message, messages.Failed):
            raise frames.to_error(frame.message)
        return frame.message

    def wait_closed(self) -> None:
        """Wait until the supervisor has closed the connection."""
        while frames.receive(self._sock, messages.EVENTS) is not None:
            pass

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


# A supervisor that has died or is being upgraded is back in well under a second; a slow host may take longer.
_PATIENCE = 30.0
_PAUSE = 0.02


def next_of(link: OwnerLink, path: str, *, attend: bool = False) -> OwnerLink:
    """A connection to the supervisor that comes after one that has said it will go; in the place of that one's.

    Raises:
        OSError: none has come for a long time.
        JobWorkerError: it does not want us.
    """
    with contextlib.closing(link):
        link.wait_closed()
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return OwnerLink(path, attend=attend)
        except (ConnectionError, FileNotFoundError, AgentUnavailable):
            if time.monotonic() > deadline:
                raise
            # The kernel tells nobody that a path is being listened on again.
            time.sleep(_PAUSE)

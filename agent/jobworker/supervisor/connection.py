"""One peer of the supervisor, and what waits for it to read.

A connection never holds up the supervisor: what a peer does not read waits in bounded form (an answer for each
request in flight, the newest record of each changed job, the newest size of each followed log), and a peer with
too many requests in flight is not listened to until it has read.
"""

from __future__ import annotations

import contextlib
import enum
import os
import select
import socket
from collections import deque
from typing import Any, Protocol

from jobworker.errors import ProtocolError
from jobworker.jobs import JobRecord
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.wire import frames, messages, sockets

_MAX_IN_FLIGHT = 512
# Who has not read for so long finds out that a job is gone when asking for it.
_MAX_REMOVED = 100_000


class Peer(enum.Enum):
    """Who a connection belongs to, by the kernel's word (SO_PEERCRED)."""

    GATEWAY = "the gateway"
    OWNER = "the supervisor's own user"


class Owner(Protocol):
    """What a connection needs of the server that it belongs to."""

    loop: Loop
    log: Log

    def handle(self, connection: Connection, seq: int, request: Any) -> None:
        """Answer a request, now or later."""

    def policy(self) -> messages.PolicyIs:
        """The policy in force."""

    def record(self, job_id: str) -> JobRecord:
        """A job's record as of its last change."""

    def log_state(self, job_id: str) -> messages.LogGrew:
        """How far a job's log goes."""

    def closed(self, connection: Connection) -> None:
        """The connection is gone."""


class Connection:
    """One peer; owns its socket."""

    def __init__(self, server: Owner, sock: socket.socket, peers: frozenset[Peer]) -> None:
        self._server = server
        self._sock = sock
        self._answers: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._changed: dict[str, None] = {}
        self._removed: deque[str] = deque(maxlen=_MAX_REMOVED)
        self._grown: dict[str, None] = {}
        self._sync_due = False
        self._policy_due = False
        self._in_flight = 0
        self._events = 0
        self.peers = peers
        self.greeted = False
        self.subscribed = False
        self.attending = False
        self.followed: set[str] = set()
        self._listen()

    def _listen(self) -> None:
        """Ask epoll for what there is to do now."""
        reading = select.EPOLLIN if self._in_flight < _MAX_IN_FLIGHT else 0
        events = reading | (select.EPOLLOUT if self._has_output() else 0)
        if events != self._events:
            self._events = events
            self._server.loop.watch(self._sock.fileno(), events, self._on_ready)

    def _has_output(self) -> bool:
        return bool(
            self._answers or self._policy_due or self._removed or self._changed or self._grown or self._sync_due
        )

    def _on_ready(self) -> None:
        try:
            self.flush()
            if self._in_flight >= _MAX_IN_FLIGHT:
                return
            frame = frames.receive(self._sock, messages.REQUESTS)
        except BlockingIOError:
            return
        except ProtocolError as error:
            self._server.log.warning("protocol error", problem=error.problem)
            self.close()
            return
        except OSError:
            frame = None
        if frame is None:
            self.close()
            return
        with frame.fds:
            self._server.handle(self, frame.seq, frame.message)

    # Output.

    def expect_answer(self) -> None:
        self._in_flight += 1

    def answer(self, seq: int, message: Any, fds: tuple[int, ...]) -> None:
        """Answer a request; takes the descriptors over."""
        self._in_flight -= 1
        self._answers.append((frames.encode(message, seq), fds))

    def job_changed(self, job_id: str) -> None:
        if self.subscribed:
            self._changed[job_id] = None

    def job_removed(self, job_id: str) -> None:
        self._changed.pop(job_id, None)
        if self.subscribed:
            self._removed.append(job_id)

    def policy_changed(self) -> None:
        self._policy_due = self.subscribed

    def log_grew(self, job_id: str) -> None:
        if job_id in self.followed:
            self._grown[job_id] = None

    def subscribe(self, job_ids: list[str]) -> None:
        self.subscribed = True
        self._changed.update(dict.fromkeys(job_ids))
        self._sync_due = True

    def flush(self) -> None:
        """Send until the peer's buffer is full."""
        if self._sock.fileno() < 0:
            return
        with contextlib.suppress(BlockingIOError):
            while self._has_output():
                self._send_next()
        self._listen()

    def _send_next(self) -> None:
        """Send one message; it stays queued when it can't be sent now."""
        if self._answers:
            data, fds = self._answers[0]
            sockets.send(self._sock, data, fds)
            self._answers.popleft()
            _close_all(fds)
        elif self._policy_due:
            sockets.send(self._sock, frames.encode(self._server.policy(), 0))
            self._policy_due = False
        elif self._removed:
            sockets.send(self._sock, frames.encode(messages.JobRemoved(self._removed[0]), 0))
            self._removed.popleft()
        elif self._changed:
            job_id = next(iter(self._changed))
            sockets.send(self._sock, frames.encode(messages.JobChanged(self._server.record(job_id)), 0))
            del self._changed[job_id]
        elif self._sync_due:
            sockets.send(self._sock, frames.encode(messages.Synced(), 0))
            self._sync_due = False
        else:
            job_id = next(iter(self._grown))
            sockets.send(self._sock, frames.encode(self._server.log_state(job_id), 0))
            del self._grown[job_id]

    def close(self) -> None:
        if self._sock.fileno() < 0:
            return
        self._server.loop.forget(self._sock.fileno())
        self._sock.close()
        for _, fds in self._answers:
            _close_all(fds)
        self._answers.clear()
        self._server.closed(self)


def _close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)

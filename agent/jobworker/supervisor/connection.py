"""One peer of the supervisor, and what waits for it to read.

A connection never holds up the supervisor: what a peer does not read waits in bounded form (an answer for each
request in flight, the newest record of each changed job, the newest size of each followed log, one word of room in
each standard input that it writes to), and a peer with too many answers to read, too large ones, or too many
descriptors with them, is not listened to until it has read some.
"""

from __future__ import annotations

import contextlib
import enum
import os
import select
import socket
import time
from collections import deque
from typing import Any, Protocol

from jobworker.errors import ProtocolError
from jobworker.supervisor.audit import Audit
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import SLICE, Loop
from jobworker.supervisor.news import News
from jobworker.wire import frames, messages, sockets

_MAX_UNSENT = 512
# Many small ones come to this together. A record alone may be 250 KiB.
_MAX_UNSENT_BYTES = 4 * 1024**2
# Each takes the place of what the next job, or another connection, needs.
_MAX_UNSENT_FDS = 64
# Of each principal only some wait for long: this is for a gateway that makes principals up, and each has a size.
_MAX_IN_FLIGHT = 2_048
# Who has not read while so many jobs went has to begin anew.
_MAX_REMOVED = 100_000


class Peer(enum.Enum):
    """Who a connection belongs to, by the kernel's word (SO_PEERCRED)."""

    GATEWAY = "the gateway"
    OWNER = "the supervisor's own user"


class Serving(Protocol):
    """What a connection needs of the server that it belongs to."""

    loop: Loop
    log: Log
    audit: Audit
    news: News

    def handle(self, connection: Connection, seq: int, request: Any) -> None:
        """Answer a request, now or later."""

    def ready(self, connection: Connection) -> None:
        """The connection may take more of what waits."""

    def closed(self, connection: Connection) -> None:
        """The connection is gone."""


class Connection:
    """One peer; owns its socket."""

    def __init__(self, server: Serving, sock: socket.socket, peers: frozenset[Peer]) -> None:
        self._server = server
        self._sock = sock
        self._answers: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._unsent_bytes = 0
        self._unsent_fds = 0
        # Jobs to tell of, in the order of their revisions; that of its removal for one that is gone, else 0.
        self._news: dict[str, int] = {}
        self._removed = 0
        self._grown: dict[str, None] = {}
        self._stdin_room: dict[str, None] = {}
        self._sync_due = self._drain_due = self._policy_due = self._host_due = False
        self._in_flight = 0
        self._events = 0
        self.peers = peers
        self.greeted = False
        self.subscribed = False
        self.attending = False
        self.followed: set[str] = set()
        # Jobs whose standard input had no room for all that came here.
        self.starved: set[str] = set()
        self._listen()

    def _listen(self) -> None:
        """Ask epoll for what there is to do now."""
        reading = 0 if self._has_enough() else select.EPOLLIN
        events = reading | (select.EPOLLOUT if self._has_output() else 0)
        if events != self._events:
            self._events = events
            self._server.loop.watch(self._sock.fileno(), events, self._on_ready)

    def fileno(self) -> int:
        return self._sock.fileno()

    def leave(self) -> None:
        """Let go of the socket, in a process that was forked: its peer and the loop are the other one's."""
        self._sock.close()

    @property
    def has_answers(self) -> bool:
        """The peer has not taken all that it asked for."""
        return bool(self._answers)

    def _has_output(self) -> bool:
        due = self._policy_due or self._sync_due or self._drain_due or self._host_due
        return bool(due or self._answers or self._news or self._grown or self._stdin_room)

    def _on_ready(self) -> None:
        # What waits goes out at the end of the round, behind what is put on record of it.
        self._server.ready(self)
        try:
            if self._has_enough():
                if self._gone():
                    self.close()
                return
            frame = frames.receive(self._sock, messages.REQUESTS)
        except BlockingIOError:
            return
        except ProtocolError as error:
            self._server.log.warning("protocol error", problem=error.problem)
            self._server.audit.protocol_error(error.problem)
            self.close()
            return
        except OSError:
            frame = None
        if frame is None:
            self.close()
            return
        with frame.fds:
            self._server.handle(self, frame.seq, frame.message)

    def _has_enough(self) -> bool:
        """What was asked before has to be answered, or read, first."""
        too_many = len(self._answers) >= _MAX_UNSENT or self._in_flight >= _MAX_IN_FLIGHT
        return too_many or self._unsent_bytes >= _MAX_UNSENT_BYTES or self._unsent_fds >= _MAX_UNSENT_FDS

    def _gone(self) -> bool:
        """Nobody is at the other end: that makes the socket ready in each round, listened to or not."""
        if self._sock.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(self._sock.fileno(), 0)
        return bool(poll.poll(0))

    # Output.

    def expect_answer(self) -> None:
        self._in_flight += 1

    def answer(self, seq: int, message: Any, fds: tuple[int, ...]) -> None:
        """Answer a request; takes the descriptors over."""
        if self._sock.fileno() < 0:
            _close_all(fds)
        else:
            data = frames.encode(message, seq)
            self._answers.append((data, fds))
            self._unsent_bytes += len(data)
            self._unsent_fds += len(fds)

    def job_changed(self, job_id: str) -> None:
        if self.subscribed:
            self._news.pop(job_id, None)
            self._news[job_id] = 0

    def job_removed(self, job_id: str, revision: int) -> None:
        if self.subscribed:
            self._news.pop(job_id, None)
            self._news[job_id] = revision
            self._removed += 1

    def drain_changed(self) -> None:
        self._drain_due = self.subscribed

    def policy_changed(self) -> None:
        self._policy_due = self.subscribed

    def host_changed(self) -> None:
        self._host_due = self.subscribed

    def log_grew(self, job_id: str) -> None:
        if job_id in self.followed:
            self._grown[job_id] = None

    def stdin_room(self, job_id: str) -> None:
        if job_id in self.starved:
            self.starved.discard(job_id)
            self._stdin_room[job_id] = None

    def subscribe(self, job_ids: list[str], *, whole: bool) -> None:
        """Report these jobs, and what changes from now on; `whole`: there are no others."""
        self.subscribed = True
        self._news.update(dict.fromkeys(job_ids, 0))
        self._sync_due = whole

    def whole(self) -> None:
        self._sync_due = self.subscribed

    def flush(self) -> None:
        """Send until the peer's buffer is full, or others have their turn: it may read as fast as this is sent."""
        if self._sock.fileno() < 0:
            return
        if self._removed > _MAX_REMOVED:
            self._server.log.warning("connection closed: it does not read")
            self.close()
            return
        end = time.monotonic() + SLICE
        with contextlib.suppress(BlockingIOError):
            while self._has_output():
                self._send_next()
                if time.monotonic() >= end:
                    break
        self._listen()

    def _send_next(self) -> None:
        """Send one message; it stays queued when it can't be sent now."""
        if self._answers:
            data, fds = self._answers[0]
            sockets.send(self._sock, data, fds)
            self._answers.popleft()
            self._unsent_bytes -= len(data)
            self._unsent_fds -= len(fds)
            self._in_flight -= 1
            _close_all(fds)
        elif self._policy_due:
            sockets.send(self._sock, frames.encode(self._server.news.policy(), 0))
            self._policy_due = False
        elif self._host_due:
            sockets.send(self._sock, frames.encode(self._server.news.host(), 0))
            self._host_due = False
        elif self._news:
            job_id, removed = next(iter(self._news.items()))
            event = messages.JobRemoved(job_id, removed) if removed else self._server.news.job(job_id)
            sockets.send(self._sock, frames.encode(event, 0))
            del self._news[job_id]
            self._removed -= removed > 0
        elif self._drain_due:
            sockets.send(self._sock, frames.encode(self._server.news.drained(), 0))
            self._drain_due = False
        elif self._sync_due:
            sockets.send(self._sock, frames.encode(self._server.news.synced(), 0))
            self._sync_due = False
        elif self._stdin_room:
            job_id = next(iter(self._stdin_room))
            sockets.send(self._sock, frames.encode(messages.StdinRoom(job_id), 0))
            del self._stdin_room[job_id]
        else:
            job_id = next(iter(self._grown))
            sockets.send(self._sock, frames.encode(self._server.news.log(job_id), 0))
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

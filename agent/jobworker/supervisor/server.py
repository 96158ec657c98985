"""The supervisor's socket: who may connect, and the answers and events that go back."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from jobworker.supervisor.audit import Audit
from jobworker.supervisor.connection import Connection, Peer
from jobworker.supervisor.job import Job
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.news import News
from jobworker.supervisor.registry import Registry
from jobworker.supervisor.requests import Reply
from jobworker.wire import sockets

# Of each kind of peer: whoever has taken over the gateway does not keep the owner from replacing it.
_MAX_CONNECTIONS = 32
_ACCEPT_AGAIN = 1.0
_BIND_AGAIN = 5.0
# A gateway that reads at all does so in less; meanwhile output waits in pipes.
_FINISH = 5.0

Answer: TypeAlias = Callable[[Connection, Any, Reply], None]


class Server:
    """Accepts connections, and has them told what they wait for.

    Args:
        answer: answers a request.
        bind: makes the listening socket.
        patient: if that fails, do without, and try again: there are jobs to be looked after.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        audit: Audit,
        registry: Registry,
        news: News,
        answer: Answer,
        bind: Callable[[], socket.socket],
        gateway_uid: int,
        *,
        patient: bool,
    ) -> None:
        self.loop, self.log, self.audit, self.news = loop, log, audit, news
        self._registry = registry
        self._answer = answer
        self._bind = bind
        self._gateway_uid = gateway_uid
        self._connections: list[Connection] = []
        self._dirty: set[Connection] = set()
        self._listener: socket.socket | None = None
        # A helper that held them would keep peers from seeing that this process has gone.
        os.register_at_fork(after_in_child=self._leave)
        self._open(patient=patient)
        loop.after_each_round(self.flush)

    def _open(self, *, patient: bool) -> None:
        try:
            listener = self._listener = self._bind()
        except OSError as error:
            if not patient:
                raise
            self.log.error("nobody can connect until the socket can be made", error=str(error))
            self.loop.call_after(_BIND_AGAIN, lambda: self._open(patient=True))
        else:
            self._listen(listener)

    def _listen(self, listener: socket.socket) -> None:
        self.loop.watch(listener.fileno(), select.EPOLLIN, lambda: self._on_connection(listener))

    def _leave(self) -> None:
        """Let go of all sockets, in a process that was forked."""
        for connection in self._connections:
            connection.leave()
        if self._listener:
            self._listener.close()

    def _on_connection(self, listener: socket.socket) -> None:
        try:
            sock = sockets.accept(listener)
        except BlockingIOError:
            # Whoever wanted to connect has gone again.
            return
        except OSError as error:
            # No descriptor is left, say. The listener stays readable: not to be looked at again in each round.
            self.log.error("connection not accepted", error=str(error))
            self.loop.forget(listener.fileno())
            self.loop.call_after(_ACCEPT_AGAIN, lambda: self._listen(listener))
            return
        uid = sockets.peer_uid(sock)
        peers = frozenset(
            peer for peer, of in ((Peer.GATEWAY, self._gateway_uid), (Peer.OWNER, os.geteuid())) if uid == of
        )
        alike = sum(connection.peers == peers for connection in self._connections)
        if not peers or alike >= _MAX_CONNECTIONS:
            self.log.warning("connection refused", uid=uid, connections=len(self._connections))
            self.audit.connection_refused(uid)
            sock.close()
            return
        self.audit.connected(uid)
        self._connections.append(Connection(self, sock, peers))

    def ready(self, connection: Connection) -> None:
        self._dirty.add(connection)

    def closed(self, connection: Connection) -> None:
        self._connections.remove(connection)
        self._dirty.discard(connection)
        if connection.attending and not any(other.attending for other in self._connections):
            self._registry.on_idle(self._end_unattended)

    def _end_unattended(self) -> None:
        if not any(connection.attending for connection in self._connections):
            self.log.info("ending: nobody attends and no job runs")
            self.loop.stop()

    def handle(self, connection: Connection, seq: int, request: Any) -> None:
        connection.expect_answer()

        def reply(message: Any, fds: tuple[int, ...] = ()) -> None:
            connection.answer(seq, message, fds)
            self._dirty.add(connection)

        self._answer(connection, request, reply)

    # Events.

    def _tell(self, tell: Callable[[Connection], None]) -> None:
        for connection in self._connections:
            tell(connection)
            self._dirty.add(connection)

    def policy_changed(self) -> None:
        self._tell(Connection.policy_changed)

    def host_changed(self) -> None:
        self._tell(Connection.host_changed)

    def drain_changed(self) -> None:
        self._tell(Connection.drain_changed)

    def whole(self) -> None:
        """Every job of earlier lives has been reported."""
        self._tell(Connection.whole)

    def job_changed(self, job_id: str) -> None:
        self._tell(lambda connection: connection.job_changed(job_id))

    def job_removed(self, job_id: str) -> None:
        revision = self._registry.revisions.next_removed()
        self._tell(lambda connection: connection.job_removed(job_id, revision))

    def log_grew(self, job: Job) -> None:
        job_id = job.record.job_id
        for connection in self._connections:
            # Not all of them: it comes with each piece of output.
            if job_id in connection.followed:
                connection.log_grew(job_id)
                self._dirty.add(connection)

    def stdin_room(self, job: Job) -> None:
        self._tell(lambda connection: connection.stdin_room(job.record.job_id))

    def flush(self) -> None:
        """Send what waits, as far as it is taken."""
        dirty, self._dirty = self._dirty, set()
        for connection in dirty:
            try:
                connection.flush()
            except OSError:
                connection.close()

    def finish(self) -> None:
        """Have the answers that there are taken while somebody sends them; who does not read loses them."""
        end = time.monotonic() + _FINISH
        self._dirty.update(self._connections)
        self.flush()
        while waiting := [connection for connection in self._connections if connection.has_answers]:
            poll = select.poll()
            for connection in waiting:
                poll.register(connection.fileno(), select.POLLOUT)
            left = end - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                self.log.warning("answers are lost: nobody takes them", connections=len(waiting))
                return
            self._dirty.update(waiting)
            self.flush()

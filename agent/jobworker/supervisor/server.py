"""The supervisor's socket: who may say what, and the answers and events that go back."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable
from typing import Any

import jobworker
from jobworker.errors import (
    InvalidField,
    JobNotFound,
    JobWorkerError,
    PermissionDenied,
    ProtocolError,
    UpgradeRefused,
)
from jobworker.jobs import MAX_GRACE_MS, JobRecord, check_job_id
from jobworker.supervisor.connection import Connection, Peer
from jobworker.supervisor.job import Job
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.policies import Policies
from jobworker.supervisor.registry import Registry
from jobworker.wire import frames, messages, sockets

_MAX_CONNECTIONS = 32
_ACCEPT_AGAIN = 1.0
_BIND_AGAIN = 5.0


Reply = Callable[[Any, tuple[int, ...]], None]


Handler = Callable[["Server", Connection, Any, Reply], None]


class Server:
    """Accepts connections and applies the table of requests.

    Args:
        bind: makes the listening socket.
        patient: if that fails, do without, and try again: there are jobs to be looked after.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        registry: Registry,
        policies: Policies,
        bind: Callable[[], socket.socket],
        gateway_uid: int,
        upgrade: Callable[[Callable[[str | None], None]], None],
        *,
        patient: bool,
    ) -> None:
        self.loop = loop
        self._upgrade = upgrade
        self.log = log
        self._registry = registry
        self._policies = policies
        self._bind = bind
        self._gateway_uid = gateway_uid
        self._connections: list[Connection] = []
        self._dirty: set[Connection] = set()
        self._open(patient=patient)
        loop.after_each_round(self._flush)

    def _open(self, *, patient: bool) -> None:
        try:
            self._listener = self._bind()
        except OSError as error:
            if not patient:
                raise
            self.log.error("nobody can connect until the socket can be made", error=str(error))
            self.loop.call_after(_BIND_AGAIN, lambda: self._open(patient=True))
        else:
            self._listen()

    def _listen(self) -> None:
        self.loop.watch(self._listener.fileno(), select.EPOLLIN, self._on_connection)

    def _on_connection(self) -> None:
        try:
            sock = sockets.accept(self._listener)
        except BlockingIOError:
            # Whoever wanted to connect has gone again.
            return
        except OSError as error:
            # No descriptor is left, say. The listener stays readable: not to be looked at again in each round.
            self.log.error("connection not accepted", error=str(error))
            self.loop.forget(self._listener.fileno())
            self.loop.call_after(_ACCEPT_AGAIN, self._listen)
            return
        uid = sockets.peer_uid(sock)
        peers = frozenset(
            peer for peer, of in ((Peer.GATEWAY, self._gateway_uid), (Peer.OWNER, os.geteuid())) if uid == of
        )
        if not peers or len(self._connections) >= _MAX_CONNECTIONS:
            self.log.warning("connection refused", uid=uid, connections=len(self._connections))
            sock.close()
            return
        self._connections.append(Connection(self, sock, peers))

    def closed(self, connection: Connection) -> None:
        self._connections.remove(connection)
        self._dirty.discard(connection)
        if connection.attending and not any(other.attending for other in self._connections):
            self._registry.on_idle(self._end_unattended)

    def _end_unattended(self) -> None:
        if not any(connection.attending for connection in self._connections):
            self.log.info("ending: nobody attends and no job runs")
            self.loop.stop()

    # Requests.

    def handle(self, connection: Connection, seq: int, request: Any) -> None:
        connection.expect_answer()

        def reply(message: Any, fds: tuple[int, ...] = ()) -> None:
            connection.answer(seq, message, fds)
            self._dirty.add(connection)

        try:
            self._dispatch(connection, request, reply)
        except JobWorkerError as error:
            reply(frames.failed(error))

    def _dispatch(self, connection: Connection, request: Any, reply: Reply) -> None:
        name = type(request).__name__
        permitted, handler = _TABLE[type(request)]
        if not permitted & connection.peers:
            raise PermissionDenied(name, " or ".join(peer.value for peer in permitted), "another user's id")
        if not connection.greeted and not isinstance(request, messages.Hello):
            raise ProtocolError(f"{name} before Hello")
        handler(self, connection, request, reply)

    def hello(self, connection: Connection, request: messages.Hello, reply: Reply) -> None:
        if request.protocol != messages.PROTOCOL:
            raise ProtocolError(f"version {request.protocol} is spoken, {messages.PROTOCOL} is understood")
        connection.greeted = True
        connection.attending = request.attend
        host = self._registry.host_info()
        reply(messages.Welcome(messages.PROTOCOL, host, jobworker.__version__, self.policy()), ())
        if request.subscribe:
            connection.subscribe([record.job_id for record in self._registry.records()])

    def start_job(self, _: Connection, request: messages.StartJob, reply: Reply) -> None:
        def started(outcome: JobRecord | JobWorkerError) -> None:
            if isinstance(outcome, JobWorkerError):
                reply(frames.failed(outcome), ())
            else:
                self.log.info("job started", job=outcome.job_id, principal=outcome.principal, uid=outcome.uid)
                reply(messages.JobReply(outcome), ())

        self._registry.start(request, started)

    def stop_job(self, _: Connection, request: messages.StopJob, reply: Reply) -> None:
        check_job_id(request.job_id)
        if not 1 <= request.signal < signal.NSIG:
            raise InvalidField("signal", f"{request.signal} is not a signal", "TERM")
        if not 0 <= request.grace_ms <= MAX_GRACE_MS:
            raise InvalidField("grace", f"must be between 0 and {MAX_GRACE_MS // 1000} s", "10s")
        self._registry.stop(request, lambda record: reply(messages.JobReply(record), ()))

    def inspect_job(self, _: Connection, request: messages.InspectJob, reply: Reply) -> None:
        reply(messages.JobReply(self._registry.inspect(check_job_id(request.job_id))), ())

    def open_log(self, _: Connection, request: messages.OpenLog, reply: Reply) -> None:
        record = self._registry.inspect(check_job_id(request.job_id))
        if request.segment < 0:
            raise InvalidField("segment", "is negative", "0")
        fds = self._registry.open_log(request.job_id, request.segment)
        start = request.segment * record.segment_bytes
        reply(messages.LogSegment(request.job_id, request.segment, start), fds)

    def follow_log(self, connection: Connection, request: messages.FollowLog, reply: Reply) -> None:
        record = self._registry.inspect(check_job_id(request.job_id))
        if record.output_ended:
            connection.followed.discard(request.job_id)
        else:
            connection.followed.add(request.job_id)
        reply(messages.JobReply(record), ())

    def unfollow_log(self, connection: Connection, request: messages.UnfollowLog, reply: Reply) -> None:
        connection.followed.discard(check_job_id(request.job_id))
        reply(messages.Done(), ())

    def read_policy(self, _: Connection, __: messages.ReadPolicy, reply: Reply) -> None:
        self._policies.read(lambda: reply(self.policy(), ()))

    def shutdown(self, _: Connection, __: messages.Shutdown, reply: Reply) -> None:
        def idle() -> None:
            reply(messages.Done(), ())
            self.loop.stop()

        self._registry.end_all(idle)

    def upgrade(self, _: Connection, __: messages.Upgrade, reply: Reply) -> None:
        def decided(problem: str | None) -> None:
            reply(frames.failed(UpgradeRefused(problem)) if problem else messages.Done(), ())
            self._flush()

        self._upgrade(decided)

    # Events.

    def policy(self) -> messages.PolicyIs:
        return messages.PolicyIs(self._policies.policy, self._policies.problem)

    def policy_changed(self) -> None:
        for connection in self._connections:
            connection.policy_changed()
            self._dirty.add(connection)

    def job_changed(self, job: Job) -> None:
        for connection in self._connections:
            connection.job_changed(job.record.job_id)
            self._dirty.add(connection)

    def job_removed(self, job_id: str) -> None:
        for connection in self._connections:
            connection.job_removed(job_id)
            self._dirty.add(connection)

    def log_grew(self, job: Job) -> None:
        for connection in self._connections:
            if job.record.job_id in connection.followed:
                connection.log_grew(job.record.job_id)
                self._dirty.add(connection)

    def record(self, job_id: str) -> JobRecord:
        running = self._registry.running.get(job_id)
        return running.record if running else self._registry.inspect(job_id)

    def log_state(self, job_id: str) -> messages.LogGrew:
        running = self._registry.running.get(job_id)
        if running:
            return messages.LogGrew(job_id, running.log_bytes, output_ended=False, lost_bytes=running.lost_bytes)
        try:
            record = self._registry.inspect(job_id)
            return messages.LogGrew(job_id, record.log_bytes, output_ended=True, lost_bytes=record.lost_bytes)
        except JobNotFound:
            return messages.LogGrew(job_id, 0, output_ended=True)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, set()
        for connection in dirty:
            try:
                connection.flush()
            except OSError:
                connection.close()


_GATEWAY = frozenset({Peer.GATEWAY})
_OWNER = frozenset({Peer.OWNER})

# Every request there is: who may make it, and what answers it. What is not here is refused.
_TABLE: dict[type[Any], tuple[frozenset[Peer], Handler]] = {
    messages.Hello: (_GATEWAY | _OWNER, Server.hello),
    messages.StartJob: (_GATEWAY, Server.start_job),
    messages.StopJob: (_GATEWAY, Server.stop_job),
    messages.InspectJob: (_GATEWAY, Server.inspect_job),
    messages.OpenLog: (_GATEWAY, Server.open_log),
    messages.FollowLog: (_GATEWAY, Server.follow_log),
    messages.UnfollowLog: (_GATEWAY, Server.unfollow_log),
    messages.ReadPolicy: (_GATEWAY | _OWNER, Server.read_policy),
    messages.Shutdown: (_OWNER, Server.shutdown),
    messages.Upgrade: (_OWNER, Server.upgrade),
}

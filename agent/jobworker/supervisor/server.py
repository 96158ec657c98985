"""The supervisor's socket: who may say what, and the answers and events that go back."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
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
from jobworker.jobs import MAX_GRACE_MS, MAX_STDIN_BYTES, JobRecord, check_job_id
from jobworker.supervisor.audit import Audit
from jobworker.supervisor.connection import Connection, Peer
from jobworker.supervisor.job import Job
from jobworker.supervisor.limit_profiles import Profiles
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.policies import Policies
from jobworker.supervisor.registry import Registry
from jobworker.supervisor.starts import Outcome
from jobworker.supervisor.tally import Tally
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
        audit: Audit,
        tally: Tally,
        registry: Registry,
        policies: Policies,
        profiles: Profiles,
        bind: Callable[[], socket.socket],
        gateway_uid: int,
        upgrade: Callable[[Callable[[str | None], None]], None],
        *,
        patient: bool,
    ) -> None:
        self.loop = loop
        self._upgrade = upgrade
        self.log = log
        self.audit = audit
        self._tally = tally
        self._registry = registry
        self._policies = policies
        self._profiles = profiles
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
            self.audit.connection_refused(uid)
            sock.close()
            return
        self.audit.connected(uid)
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

        with self._answering(request, reply):
            self._dispatch(connection, request, reply)

    @contextlib.contextmanager
    def _answering(self, request: Any, reply: Reply) -> Iterator[None]:
        """Answer with what goes wrong."""
        try:
            yield
        except JobWorkerError as error:
            if isinstance(error, PermissionDenied | ProtocolError):
                self.audit.request_refused(type(request).__name__, error)
            reply(frames.failed(error), ())

    def _with_limits(self, request: Any, reply: Reply, do: Callable[[], None]) -> None:
        """Do what depends on the limits file, once that has been read if it has changed."""

        def done() -> None:
            with self._answering(request, reply):
                do()

        self._profiles.read(done)

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
        host, epoch = self._registry.starts.host_info(), self._registry.revisions.epoch
        policy, level = self.policy(), self.log.level
        reply(messages.Welcome(messages.PROTOCOL, host, jobworker.__version__, policy, epoch, level), ())
        if request.subscribe:
            records = sorted(self._registry.records(), key=lambda record: record.revision)
            connection.subscribe([record.job_id for record in records], whole=self._registry.is_whole)

    def start_job(self, _: Connection, request: messages.StartJob, reply: Reply) -> None:
        def started(outcome: Outcome) -> None:
            if isinstance(outcome, JobWorkerError):
                reply(frames.failed(outcome), ())
            elif isinstance(outcome, messages.StartPlanned):
                reply(outcome, ())
            else:
                told = {"job": outcome.job_id, "principal": outcome.principal, "uid": outcome.uid}
                self._say("job started", request.caller, **told)
                reply(messages.JobReply(outcome), ())

        def start() -> None:
            try:
                self._registry.starts.start(request, started)
            except JobWorkerError as error:
                self.audit.start_refused(request, error)
                raise

        self._with_limits(request, reply, start)

    def stop_job(self, _: Connection, request: messages.StopJob, reply: Reply) -> None:
        with self._refusals("stop", request.caller, request.job_id):
            check_job_id(request.job_id)
            _check_signal(request.signal)
            if not 0 <= request.grace_ms <= MAX_GRACE_MS:
                raise InvalidField("grace", f"must be between 0 and {MAX_GRACE_MS // 1000} s", "10s")
            self._registry.stop(request, lambda record: reply(messages.JobReply(record), ()))

    def _say(self, event: str, caller: messages.Caller, **fields: object) -> None:
        """Log what was done for a request."""
        self.log.info(event, **fields, request=caller.request_id)

    @contextlib.contextmanager
    def _refusals(self, what: str, caller: messages.Caller, job_id: str = "") -> Iterator[None]:
        """Put on record that a request was refused."""
        try:
            yield
        except JobWorkerError as error:
            self.audit.refused(what, caller, job_id, error)
            raise

    def signal_job(self, _: Connection, request: messages.SignalJob, reply: Reply) -> None:
        with self._refusals("signal", request.caller, request.job_id):
            check_job_id(request.job_id)
            _check_signal(request.signal)
            record = self._registry.signal(request)
        self.audit.signalled(request)
        told = {"job": request.job_id, "signal": request.signal, "everyone": request.everyone}
        self._say("job signalled", request.caller, **told)
        reply(messages.JobReply(record), ())

    def write_stdin(self, connection: Connection, request: messages.WriteStdin, reply: Reply) -> None:
        with self._refusals("stdin", request.caller, request.job_id):
            check_job_id(request.job_id)
            if len(request.data) > MAX_STDIN_BYTES:
                raise InvalidField("data", f"has more than {MAX_STDIN_BYTES} bytes; write it in several messages")
            taken = self._registry.write_stdin(request)
        if not taken.whole:
            connection.starved.add(request.job_id)
        reply(taken, ())

    def update_job(self, _: Connection, request: messages.UpdateJob, reply: Reply) -> None:
        def update() -> None:
            with self._refusals("update", request.caller, request.job_id):
                check_job_id(request.job_id)
                record = self._registry.update(request)
            caller = request.caller
            self._say("limits updated", caller, job=request.job_id, principal=caller.principal)
            reply(messages.JobReply(record), ())

        self._with_limits(request, reply, update)

    def delete_job(self, _: Connection, request: messages.DeleteJob, reply: Reply) -> None:
        with self._refusals("delete", request.caller, request.job_id):
            self._registry.delete(request)
        self._say("job deleted", request.caller, job=request.job_id)
        reply(messages.Done(), ())

    def drain(self, _: Connection, request: messages.Drain, reply: Reply) -> None:
        with self._refusals("drain", request.caller):
            self._registry.starts.drain(request, lambda drained: reply(drained, ()))
        self.audit.drained(request)
        self._say("new jobs are not taken" if request.draining else "new jobs are taken", request.caller)
        for connection in self._connections:
            connection.drain_changed()
            self._dirty.add(connection)

    def inspect_job(self, _: Connection, request: messages.InspectJob, reply: Reply) -> None:
        reply(messages.JobReply(self._registry.inspect(check_job_id(request.job_id))), ())

    def open_log(self, _: Connection, request: messages.OpenLog, reply: Reply) -> None:
        record = self._registry.inspect(check_job_id(request.job_id))
        if request.segment < 0:
            raise InvalidField("segment", "is negative", "0")
        opened = self._registry.open_log(request.job_id, request.segment)
        start = request.segment * record.segment_bytes
        length = record.segment_bytes if opened.compressed else 0
        answer = messages.LogSegment(request.job_id, request.segment, start, length)
        reply(answer, (opened.log_fd, opened.index_fd))

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

    def report_calls(self, _: Connection, request: messages.ReportCalls, reply: Reply) -> None:
        if len(request.calls) > messages.MAX_REPORTS:
            raise InvalidField("calls", f"has {len(request.calls)} items, more than {messages.MAX_REPORTS}")
        self.audit.reported(request)
        reply(messages.Done(), ())

    def read_policy(self, _: Connection, __: messages.ReadPolicy, reply: Reply) -> None:
        self._policies.read(lambda: reply(self.policy(), ()))

    def read_limits(self, _: Connection, __: messages.ReadLimits, reply: Reply) -> None:
        self._profiles.read(lambda: reply(self.host(), ()))

    def measure(self, _: Connection, __: messages.Measure, reply: Reply) -> None:
        written = ((job.log_bytes, job.lost_bytes) for job in self._registry.running.values())
        reply(messages.Measures(self._tally.totals(written), self._tally.life()), ())

    def shutdown(self, _: Connection, __: messages.Shutdown, reply: Reply) -> None:
        self.audit.owner_asked("shutdown")

        def idle() -> None:
            reply(messages.Done(), ())
            self.loop.stop()

        self._registry.end_all(idle)

    def upgrade(self, _: Connection, __: messages.Upgrade, reply: Reply) -> None:
        self.audit.owner_asked("upgrade")

        def decided(problem: str | None) -> None:
            reply(frames.failed(UpgradeRefused(problem)) if problem else messages.Done(), ())
            self._flush()

        self._upgrade(decided)

    # Events.

    def policy(self) -> messages.PolicyIs:
        return messages.PolicyIs(self._policies.value, self._policies.problem)

    def policy_changed(self) -> None:
        for connection in self._connections:
            connection.policy_changed()
            self._dirty.add(connection)

    def host(self) -> messages.HostIs:
        return messages.HostIs(self._registry.starts.host_info())

    def host_changed(self) -> None:
        for connection in self._connections:
            connection.host_changed()
            self._dirty.add(connection)

    def job_changed(self, job_id: str) -> None:
        for connection in self._connections:
            connection.job_changed(job_id)
            self._dirty.add(connection)

    def whole(self) -> None:
        """Every job of earlier lives has been reported."""
        for connection in self._connections:
            connection.whole()
            self._dirty.add(connection)

    def job_removed(self, job_id: str) -> None:
        revision = self._registry.revisions.next_removed()
        for connection in self._connections:
            connection.job_removed(job_id, revision)
            self._dirty.add(connection)

    def log_grew(self, job: Job) -> None:
        for connection in self._connections:
            if job.record.job_id in connection.followed:
                connection.log_grew(job.record.job_id)
                self._dirty.add(connection)

    def record(self, job_id: str) -> JobRecord:
        running = self._registry.running.get(job_id)
        return running.record if running else self._registry.inspect(job_id)

    def synced(self) -> messages.Synced:
        revisions = self._registry.revisions
        return messages.Synced(revisions.newest, revisions.removed, revisions.began)

    def drain_state(self) -> messages.DrainChanged:
        return messages.DrainChanged(self._registry.starts.draining)

    def log_state(self, job_id: str) -> messages.LogGrew:
        running = self._registry.running.get(job_id)
        if running:
            return messages.LogGrew(job_id, running.log_bytes, output_ended=False, lost_bytes=running.lost_bytes)
        try:
            record = self._registry.inspect(job_id)
            return messages.LogGrew(job_id, record.log_bytes, output_ended=True, lost_bytes=record.lost_bytes)
        except JobNotFound:
            return messages.LogGrew(job_id, 0, output_ended=True)

    def stdin_room(self, job: Job) -> None:
        for connection in self._connections:
            connection.stdin_room(job.record.job_id)
            self._dirty.add(connection)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, set()
        for connection in dirty:
            try:
                connection.flush()
            except OSError:
                connection.close()


def _check_signal(number: int) -> None:
    if not 1 <= number < signal.NSIG:
        raise InvalidField("signal", f"{number} is not a signal", "TERM")


_GATEWAY = frozenset({Peer.GATEWAY})
_OWNER = frozenset({Peer.OWNER})

# Every request there is: who may make it, and what answers it. What is not here is refused.
_TABLE: dict[type[Any], tuple[frozenset[Peer], Handler]] = {
    messages.Hello: (_GATEWAY | _OWNER, Server.hello),
    messages.StartJob: (_GATEWAY, Server.start_job),
    messages.StopJob: (_GATEWAY, Server.stop_job),
    messages.SignalJob: (_GATEWAY, Server.signal_job),
    messages.WriteStdin: (_GATEWAY, Server.write_stdin),
    messages.UpdateJob: (_GATEWAY, Server.update_job),
    messages.DeleteJob: (_GATEWAY, Server.delete_job),
    messages.Drain: (_GATEWAY, Server.drain),
    messages.InspectJob: (_GATEWAY, Server.inspect_job),
    messages.OpenLog: (_GATEWAY, Server.open_log),
    messages.FollowLog: (_GATEWAY, Server.follow_log),
    messages.UnfollowLog: (_GATEWAY, Server.unfollow_log),
    messages.ReportCalls: (_GATEWAY, Server.report_calls),
    messages.ReadPolicy: (_GATEWAY | _OWNER, Server.read_policy),
    messages.ReadLimits: (_GATEWAY | _OWNER, Server.read_limits),
    messages.Measure: (_GATEWAY | _OWNER, Server.measure),
    messages.Shutdown: (_OWNER, Server.shutdown),
    messages.Upgrade: (_OWNER, Server.upgrade),
}

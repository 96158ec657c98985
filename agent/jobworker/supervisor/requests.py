"""What may be asked of the supervisor: the table of requests, who may make them, and what answers each."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jobworker
from jobworker.errors import (
    HostFault,
    InvalidField,
    JobWorkerError,
    PermissionDenied,
    ProtocolError,
    QuotaExceeded,
    UpgradeRefused,
)
from jobworker.jobs import MAX_GRACE_MS, MAX_STDIN_BYTES, check_job_id
from jobworker.supervisor.audit import Audit
from jobworker.supervisor.connection import Connection, Peer
from jobworker.supervisor.disks import DiskAwaited
from jobworker.supervisor.limit_profiles import Profiles
from jobworker.supervisor.log import Log
from jobworker.supervisor.news import News
from jobworker.supervisor.policies import Policies
from jobworker.supervisor.reclaim import MemoryAwaited
from jobworker.supervisor.registry import Registry
from jobworker.supervisor.starts import Outcome
from jobworker.supervisor.tally import Tally
from jobworker.wire import frames, messages
from jobworker.wire.callers import Caller

Reply = Callable[[Any, tuple[int, ...]], None]
Handler = Callable[["Requests", Connection, Any, Reply], None]

# What is not always answered at once: it may take what the host takes, whose file systems answer when they like.
_MAY_WAIT = (messages.StartJob, messages.UpdateJob, messages.Drain)
# As many calls as the gateway has under way for a principal, by default.
_MOST_WAITING, _WAITING_RETRY_MS = 256, 1_000


class Requests:
    """Applies the table.

    Args:
        upgrade: execute the program that is on disk now; calls back with why not, or right before it does.
        drained: called when new jobs are not taken any more, or again.
    """

    def __init__(
        self,
        log: Log,
        audit: Audit,
        tally: Tally,
        registry: Registry,
        policies: Policies,
        profiles: Profiles,
        news: News,
        upgrade: Callable[[Callable[[str | None], None]], None],
        drained: Callable[[], None],
    ) -> None:
        self._log = log
        self._audit = audit
        self._tally = tally
        self._registry = registry
        self._policies = policies
        self._profiles = profiles
        self._news = news
        self._upgrade = upgrade
        self._drained = drained
        self._waiting: Counter[str] = Counter()

    def answer(self, connection: Connection, request: Any, reply: Reply) -> None:
        """Answer a request, now or later, or say what is wrong with it."""
        with self._answering(request, reply):
            handler = self._handler(connection, request)
            counted = self._counted(request, reply) if isinstance(request, _MAY_WAIT) else reply
            with self._answering(request, counted):
                handler(self, connection, request, counted)

    @contextlib.contextmanager
    def _answering(self, request: Any, reply: Reply) -> Iterator[None]:
        """Answer with what goes wrong."""
        try:
            yield
        except JobWorkerError as error:
            if isinstance(error, PermissionDenied | ProtocolError):
                self._audit.request_refused(type(request).__name__, error)
            reply(frames.failed(error), ())
        except OSError as error:
            # A directory that somebody has removed, a disk that fails: the other jobs have nothing to do with it.
            name = type(request).__name__
            self._log.error("a request failed", request=name, error=str(error))
            reply(frames.failed(HostFault.of(f"answering {name}", error)), ())

    def _handler(self, connection: Connection, request: Any) -> Handler:
        """What answers a request.

        Raises:
            PermissionDenied: not to this peer.
            ProtocolError: not yet.
        """
        name = type(request).__name__
        permitted, handler = _TABLE[type(request)]
        if not permitted & connection.peers:
            raise PermissionDenied(name, " or ".join(peer.value for peer in permitted), "another user's id")
        if not connection.greeted and not isinstance(request, messages.Hello | messages.Control):
            raise ProtocolError(f"{name} before Hello")
        return handler

    def _counted(self, request: Any, reply: Reply) -> Reply:
        """Count a request until it is answered by what is returned.

        The gateway does not know how many there are: a call that its client takes back is none there any more.

        Raises:
            QuotaExceeded: the principal has too many.
        """
        principal = request.caller.principal
        if (waiting := self._waiting[principal]) >= _MOST_WAITING:
            raise QuotaExceeded("waiting_calls", _MOST_WAITING, waiting, _WAITING_RETRY_MS)
        self._waiting[principal] += 1

        def answer(message: Any, fds: tuple[int, ...] = ()) -> None:
            self._waiting[principal] -= 1
            if not self._waiting[principal]:
                del self._waiting[principal]
            reply(message, fds)

        return answer

    def _with_limits(self, request: Any, reply: Reply, do: Callable[[], None]) -> None:
        """Do what depends on the limits file, once that has been read if it has changed."""

        def done() -> None:
            with self._answering(request, reply):
                do()

        self._profiles.read(done)

    def hello(self, connection: Connection, request: messages.Hello, reply: Reply) -> None:
        if request.protocol != messages.PROTOCOL:
            raise ProtocolError(f"version {request.protocol} is spoken, {messages.PROTOCOL} is understood")
        if request.subscribe and connection.subscribed:
            raise ProtocolError("all that is to be told is told once")
        connection.greeted = True
        host, epoch = self._registry.starts.host_info(), self._registry.revisions.epoch
        policy, level = self._news.policy(), self._log.level
        reply(messages.Welcome(messages.PROTOCOL, host, jobworker.__version__, policy, epoch, level), ())
        if request.subscribe:
            records = sorted(self._registry.records(), key=lambda record: record.revision)
            connection.subscribe([record.job_id for record in records], whole=self._registry.is_whole)

    def control(self, connection: Connection, request: messages.Control, reply: Reply) -> None:
        connection.greeted = True
        connection.attending = request.attend
        reply(messages.Running(jobworker.__version__), ())

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
                self._audit.start_refused(request, error)
                raise

        self._with_limits(request, reply, start)

    def stop_job(self, _: Connection, request: messages.StopJob, reply: Reply) -> None:
        with self._refusals("stop", request.caller, request.job_id):
            check_job_id(request.job_id)
            _check_signal(request.signal)
            if not 0 <= request.grace_ms <= MAX_GRACE_MS:
                raise InvalidField("grace", f"must be between 0 and {MAX_GRACE_MS // 1000} s", "10s")
            record = self._registry.stop(request)
        reply(messages.JobReply(record), ())

    def _say(self, event: str, caller: Caller, **fields: object) -> None:
        """Log what was done for a request."""
        self._log.info(event, **fields, request=caller.request_id)

    @contextlib.contextmanager
    def _refusals(self, what: str, caller: Caller, job_id: str = "") -> Iterator[None]:
        """Put on record that a request was refused."""
        try:
            yield
        except JobWorkerError as error:
            self._audit.refused(what, caller, job_id, error)
            raise

    def signal_job(self, _: Connection, request: messages.SignalJob, reply: Reply) -> None:
        with self._refusals("signal", request.caller, request.job_id):
            check_job_id(request.job_id)
            _check_signal(request.signal)
            record = self._registry.signal(request)
        self._audit.signalled(request)
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
                try:
                    record = self._registry.update(request)
                except DiskAwaited as awaited:
                    user = self._registry.inspect(request.job_id).user
                    self._registry.starts.disks.look(awaited.directory, user, request.caller.principal, begin)
                    return
                except MemoryAwaited as awaited:
                    self._registry.reclaim(awaited, self._registry.starts.disks.keeping(again))
                    return
            caller = request.caller
            self._say("limits updated", caller, job=request.job_id, principal=caller.principal)
            reply(messages.JobReply(record), ())

        def begin() -> None:
            self._with_limits(request, reply, update)

        def again() -> None:
            with self._answering(request, reply):
                update()

        begin()

    def delete_job(self, _: Connection, request: messages.DeleteJob, reply: Reply) -> None:
        with self._refusals("delete", request.caller, request.job_id):
            self._registry.delete(request)
        self._say("job deleted", request.caller, job=request.job_id)
        reply(messages.Done(), ())

    def drain(self, _: Connection, request: messages.Drain, reply: Reply) -> None:
        with self._refusals("drain", request.caller):
            self._registry.starts.drain(request, lambda drained: reply(drained, ()))
        self._audit.drained(request)
        self._say("new jobs are not taken" if request.draining else "new jobs are taken", request.caller)
        self._drained()

    def inspect_job(self, _: Connection, request: messages.InspectJob, reply: Reply) -> None:
        reply(messages.JobReply(self._registry.inspect(check_job_id(request.job_id))), ())

    def open_log(self, _: Connection, request: messages.OpenLog, reply: Reply) -> None:
        check_job_id(request.job_id)
        if request.segment < 0:
            raise InvalidField("segment", "is negative", "0")
        log_fd, index_fd, start, length = self._registry.open_log(request.job_id, request.segment)
        reply(messages.LogSegment(request.job_id, request.segment, start, length), (log_fd, index_fd))

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
        self._audit.reported(request)
        reply(messages.Done(), ())

    def read_policy(self, _: Connection, request: messages.ReadPolicy, reply: Reply) -> None:
        self._policies.read(lambda: reply(self._news.policy(), ()), anyway=request.anyway)

    def read_limits(self, _: Connection, request: messages.ReadLimits, reply: Reply) -> None:
        self._profiles.read(lambda: reply(self._news.host(), ()), anyway=request.anyway)

    def measure(self, _: Connection, __: messages.Measure, reply: Reply) -> None:
        written = ((job.log_bytes, job.lost_bytes) for job in self._registry.running.values())
        reply(messages.Measures(self._tally.totals(written), self._tally.life()), ())

    def shutdown(self, connection: Connection, _: messages.Shutdown, reply: Reply) -> None:
        self._audit.owner_asked("shutdown")
        connection.attending = True
        self._registry.end_all(lambda: reply(messages.Done(), ()))

    def upgrade(self, _: Connection, __: messages.Upgrade, reply: Reply) -> None:
        self._audit.owner_asked("upgrade")

        def decided(problem: str | None) -> None:
            reply(frames.failed(UpgradeRefused(problem)) if problem else messages.Done(), ())

        self._upgrade(decided)


def _check_signal(number: int) -> None:
    if not 1 <= number < signal.NSIG:
        raise InvalidField("signal", f"{number} is not a signal", "TERM")


_GATEWAY = frozenset({Peer.GATEWAY})
_OWNER = frozenset({Peer.OWNER})

# Every request there is: who may make it, and what answers it. What is not here is refused.
_TABLE: dict[type[Any], tuple[frozenset[Peer], Handler]] = {
    messages.Hello: (_GATEWAY | _OWNER, Requests.hello),
    messages.Control: (_OWNER, Requests.control),
    messages.StartJob: (_GATEWAY, Requests.start_job),
    messages.StopJob: (_GATEWAY, Requests.stop_job),
    messages.SignalJob: (_GATEWAY, Requests.signal_job),
    messages.WriteStdin: (_GATEWAY, Requests.write_stdin),
    messages.UpdateJob: (_GATEWAY, Requests.update_job),
    messages.DeleteJob: (_GATEWAY, Requests.delete_job),
    messages.Drain: (_GATEWAY, Requests.drain),
    messages.InspectJob: (_GATEWAY, Requests.inspect_job),
    messages.OpenLog: (_GATEWAY, Requests.open_log),
    messages.FollowLog: (_GATEWAY, Requests.follow_log),
    messages.UnfollowLog: (_GATEWAY, Requests.unfollow_log),
    messages.ReportCalls: (_GATEWAY, Requests.report_calls),
    messages.ReadPolicy: (_GATEWAY | _OWNER, Requests.read_policy),
    messages.ReadLimits: (_GATEWAY | _OWNER, Requests.read_limits),
    messages.Measure: (_GATEWAY | _OWNER, Requests.measure),
    messages.Shutdown: (_OWNER, Requests.shutdown),
    messages.Upgrade: (_OWNER, Requests.upgrade),
}

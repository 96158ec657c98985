"""All jobs of this host: what is asked of them is decided here."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import replace

from jobworker.errors import (
    AgentDraining,
    AgentUnavailable,
    CapExceeded,
    HostFault,
    JobAlreadyEnded,
    JobNotEnded,
    JobNotFound,
    JobWorkerError,
)
from jobworker.jobs import (
    EndReason,
    JobRecord,
    JobSpec,
    State,
    check_job_id,
    new_job_id,
)
from jobworker.kernel.cgroup.base import Hierarchy
from jobworker.kernel.spawn import User
from jobworker.settings.schema import JobSettings
from jobworker.supervisor.backlog import Backlog
from jobworker.supervisor.guard import LimitGuard
from jobworker.supervisor.isolation import Isolation
from jobworker.supervisor.job import DEFAULT_GRACE, Job, Surroundings
from jobworker.supervisor.keys import Keys
from jobworker.supervisor.launcher import Launcher, Order
from jobworker.supervisor.limits import LimitRules, host_memory
from jobworker.supervisor.output import open_segment
from jobworker.supervisor.permits import Permits
from jobworker.supervisor.retention import Retention
from jobworker.supervisor.users import Users
from jobworker.wire.messages import Caller, DeleteJob, Drain, Drained, HostInfo, SignalJob, StartJob, StopJob

Ended = Callable[[JobRecord], None]
Started = Callable[[JobRecord | JobWorkerError], None]

_RETRY_SECONDS = 5
_MAX_EARLY = 256
# What fits a message.
_MAX_ACTIVE_TOLD = 10_000


class Registry:
    """Owns the running jobs and the records of the ended ones.

    Args:
        removed: called with the id of an ended job that is not kept any longer.
    """

    def __init__(
        self,
        settings: JobSettings,
        around: Surroundings,
        hierarchy: Hierarchy,
        isolation: Isolation,
        permits: Permits,
        launcher: Launcher,
        removed: Callable[[str], None],
    ) -> None:
        store = around.store
        self._settings = settings
        self._store = store
        self.revisions = around.revisions
        self._hierarchy = hierarchy
        self._isolation = isolation
        self._permits = permits
        self._launcher = launcher
        self._limits = LimitRules(settings, hierarchy)
        self._users = Users(settings)
        self._removed = removed
        self._audit = around.audit
        self.retention = Retention(around.loop, around.log, store, settings, self._forget, self._users.give_back)
        self._guard = LimitGuard(around.loop, around.log)
        self._launching: dict[str, tuple[Order, list[Started]]] = {}
        # Starts that came before all jobs were known: until then nobody knows which user ids and keys are in use.
        self._early: list[tuple[StartJob, Started]] | None = []
        self.keys = Keys()
        self._when_idle: list[Callable[[], None]] = []
        self._when_settled: list[Callable[[], None]] = []
        self._closed = False
        self.backlog: Backlog | None = None
        self.draining = store.draining
        self.running: dict[str, Job] = {}
        self.ended: dict[str, JobRecord] = {}

    # Taking in.

    def add_running(self, job: Job, *, adopted: bool = False) -> None:
        self._users.keep(job.record.uid)
        self.running[job.record.job_id] = job
        self._guard.begin(job, suspect=adopted)

    def add_ended(self, record: JobRecord) -> None:
        self._users.keep(record.uid)
        self.running.pop(record.job_id, None)
        self._guard.end(record.job_id)
        self.ended[record.job_id] = record
        self.retention.add(record)

    def whole(self) -> None:
        """All jobs of earlier lives are known."""
        early, self.backlog, self._early = self._early or [], None, None
        self.retention.begin()
        for request, started in early:
            try:
                self.start(request, started)
            except JobWorkerError as error:
                self._audit.start_refused(request, error)
                started(error)
        self._tell_idle()

    @property
    def is_whole(self) -> bool:
        return self._early is None

    def _forget(self, job_id: str) -> None:
        del self.ended[job_id]
        self.keys.forget(job_id)
        self._audit.removed(job_id)
        self._removed(job_id)

    def changed(self, job: Job) -> None:
        """Keep the books after a change of a job's record."""
        if job.record.state is State.ENDED:
            self.add_ended(job.record)
            self._tell_idle()

    # Starting.

    def start(self, request: StartJob, started: Started) -> None:
        """Start a job; `started` gets its record once the command was executed.

        Raises:
            JobWorkerError: why it can't be started.
        """
        spec, idempotency = request.spec, request.idempotency
        spec.check()
        idempotency.check()
        if self._early is not None:
            if len(self._early) >= _MAX_EARLY:
                raise AgentUnavailable("it has just started, and does not know all jobs yet")
            self._early.append((request, started))
            return
        principal, permit = request.caller.principal, self._permits.start(request.caller, spec)
        if known := self.keys.find(principal, idempotency):
            self._audit.start_repeated(request, known)
            self._started_before(known, started)
            return
        self._admit()
        job_id = new_job_id()
        directory = spec.workdir or self._store.jobs_path
        plan = self._limits.plan(permit.spec, directory, permit.prescribed, permit.filled)
        self._reserve(plan.settable.memory_bytes or 0)
        confinement, applied = self._isolation.decide(spec, self._store.work_path(job_id))
        self._audit.start_asked(request)
        own_uid = None if permit.user else self._users.take()
        user = permit.user if own_uid is None else User(own_uid, own_uid)
        record = self._new_record(job_id, principal, spec, user.uid if user else os.geteuid())
        order = Order(
            record=replace(record, sandbox=applied),
            spec=spec,
            user=user,
            own_uid=own_uid,
            confinement=confinement,
            limits=plan.settable,
            idempotency=idempotency,
            report=lambda actual: self._limits.status(plan, actual),
        )
        self._launching[order.record.job_id] = order, [started]
        self.keys.remember(order.record, idempotency)
        try:
            self._launcher.launch(order, lambda outcome: self._launched(order, request.caller, outcome))
        except JobWorkerError as error:
            self._launched(order, request.caller, error)

    def _started_before(self, job_id: str, started: Started) -> None:
        if launching := self._launching.get(job_id):
            launching[1].append(started)
        else:
            started(self.inspect(job_id))

    def _launched(self, order: Order, caller: Caller, outcome: Job | JobWorkerError) -> None:
        _, waiting = self._launching.pop(order.record.job_id)
        answer: JobRecord | JobWorkerError
        if isinstance(outcome, Job):
            self.add_running(outcome)
            self._audit.started(caller, outcome.record)
            answer = outcome.record
        else:
            self.keys.forget(order.record.job_id)
            self._users.give_back(order.own_uid)
            self._audit.start_failed(caller, order.record, outcome)
            answer = outcome
        for started in waiting:
            started(answer)
        self._tell_settled()
        self._tell_idle()

    def _admit(self) -> None:
        active = len(self.running) + len(self._launching)
        if self._closed:
            raise AgentUnavailable("it is ending, or starting anew, and takes no jobs")
        if self.draining:
            raise AgentDraining
        if active >= self._settings.max_active:
            raise CapExceeded("the number of active jobs", self._settings.max_active, _RETRY_SECONDS)

    def _reserve(self, memory: int) -> None:
        if most := self._settings.max_jobs_memory_bytes:
            held = [order.limits for order, _ in self._launching.values()]
            held += [job.limits for job in self.running.values()]
            if memory + sum(limits.memory_bytes or 0 for limits in held) > most:
                raise CapExceeded("the memory, in bytes, that jobs are limited to together,", most, _RETRY_SECONDS)

    def _new_record(self, job_id: str, principal: str, spec: JobSpec, uid: int) -> JobRecord:
        return JobRecord(
            job_id=job_id,
            principal=principal,
            command=spec.command,
            args=spec.args,
            env_names=tuple(name for name, _ in spec.env),
            labels=spec.labels,
            workdir=spec.workdir or self._store.work_path(job_id),
            timeout_ms=spec.timeout_ms,
            uid=uid,
            user=spec.user,
            pid=0,
            state=State.PENDING,
            created_ns=time.time_ns(),
            log_path=self._store.log_path(job_id),
            segment_bytes=self._settings.segment_bytes,
        )

    # Asking and stopping.

    def records(self) -> list[JobRecord]:
        return [*self.ended.values(), *(job.record for job in self.running.values())]

    def inspect(self, job_id: str) -> JobRecord:
        """A job's record as of now.

        Raises:
            JobNotFound: there is no such job.
        """
        job = self.running.get(job_id)
        return job.inspect() if job else self._ended_record(job_id)

    def _ended_record(self, job_id: str) -> JobRecord:
        if self.backlog:
            self.backlog.take(job_id)
        record = self.ended.get(job_id)
        if record is None:
            raise JobNotFound(job_id)
        return record

    def stop(self, request: StopJob, ended: Ended) -> None:
        """Stop a job; `ended` gets its record when it has ended, or is being stopped without `wait`.

        Raises:
            JobNotFound: there is no such job, or not for this caller.
            PolicyDenied: not by this caller.
            JobAlreadyEnded: it has ended before.
        """
        job = self._running("Stop", request)
        self._audit.stop_asked(request, again=job.record.state is State.STOPPING)
        job.stop(request.signal, request.grace_ms / 1000, EndReason.STOPPED, force=request.force)
        if request.wait and not job.record.stuck:
            job.when_ended(ended)
        else:
            ended(job.inspect())

    def signal(self, request: SignalJob) -> JobRecord:
        """Send a signal to a job's main process, or to all of its processes.

        Raises:
            JobNotFound: there is no such job, or not for this caller.
            PolicyDenied: not by this caller.
            JobAlreadyEnded: it has ended before.
            MainProcessEnded: that has, and the job goes on.
            HostFault: the kernel refuses.
        """
        job = self._running("Signal", request)
        try:
            job.signal(request.signal, everyone=request.everyone)
        except OSError as error:
            raise _host_fault("signalling the job", error) from error
        return job.inspect()

    def _running(self, rpc: str, request: StopJob | SignalJob) -> Job:
        """The running job that the caller may do this to."""
        job = self.running.get(request.job_id)
        record = job.record if job else self._ended_record(request.job_id)
        self._permits.change(rpc, request.caller, record)
        if job is None:
            raise JobAlreadyEnded(request.job_id, record.end_reason.value if record.end_reason else "")
        return job

    def delete(self, request: DeleteJob) -> None:
        """Remove an ended job with all its files.

        Raises:
            JobNotFound: there is no such job, or not for this caller.
            PolicyDenied: not by this caller.
            JobNotEnded: it runs, or is being started.
            HostFault: the disk refuses.
        """
        job_id = check_job_id(request.job_id)
        job = self.running.get(job_id)
        if job_id in self._launching:
            raise JobNotEnded(job_id)
        self._permits.change("Delete", request.caller, job.record if job else self._ended_record(job_id))
        if job:
            raise JobNotEnded(job_id)
        self._audit.delete_asked(request)
        try:
            self.retention.delete(job_id)
        except OSError as error:
            raise _host_fault("removing the job's directory", error) from error

    def drain(self, request: Drain, drained: Callable[[Drained], None]) -> None:
        """Take no new jobs, or take them again; `drained` is called when none is being launched any more.

        Raises:
            PolicyDenied: not by this caller.
            HostFault: that can't be written down, and is as it was.
        """
        draining = request.draining
        self._permits.agent("Drain" if draining else "Undrain", request.caller)
        try:
            self._store.set_draining(draining)
        except OSError as error:
            raise _host_fault("writing that the agent is draining", error) from error
        self.draining = draining
        if draining:
            self._when_settled.append(lambda: drained(Drained(True, tuple(self.running)[:_MAX_ACTIVE_TOLD])))
            self._tell_settled()
        else:
            drained(Drained(False, ()))

    def open_log(self, job_id: str, segment: int) -> tuple[int, int]:
        """Read-only descriptors of a segment and its index; the caller closes them.

        Raises:
            JobNotFound: there is no such job.
            OutputDropped: there is no such segment.
        """
        record = self.inspect(job_id)
        directory = self._store.open_logs(job_id)
        try:
            return open_segment(directory, record, segment)
        finally:
            os.close(directory)

    def end_all(self, idle: Callable[[], None]) -> None:
        """Take no more jobs, stop those that run, and call back when none is left."""
        self._closed = True
        self._when_idle.append(idle)
        for job in tuple(self.running.values()):
            job.stop(15, DEFAULT_GRACE, EndReason.STOPPED)
        self._tell_idle()

    @property
    def active(self) -> int:
        return len(self.running) + len(self._launching) + len(self._early or ())

    def pause(self, settled: Callable[[], None]) -> None:
        """Take no more jobs, and call back once no job is being launched: each runs or is not there."""
        self._closed = True
        self._when_settled.append(settled)
        self._tell_settled()

    def _tell_settled(self) -> None:
        if not self._launching:
            callbacks, self._when_settled = self._when_settled, []
            for settled in callbacks:
                settled()

    def on_idle(self, callback: Callable[[], None]) -> None:
        """Call back once no job is active; at once if none is."""
        self._when_idle.append(callback)
        self._tell_idle()

    def _tell_idle(self) -> None:
        if not self.active:
            callbacks, self._when_idle = self._when_idle, []
            for callback in callbacks:
                callback()

    def host_info(self) -> HostInfo:
        return HostInfo(
            cgroup_mode=self._hierarchy.mode,
            limits=self._limits.support(),
            cpus=os.cpu_count() or 1,
            memory_bytes=host_memory(),
            max_active_jobs=self._settings.max_active,
            user_per_job=self._users.one_per_job,
            sandbox=self._isolation.default,
            isolation=self._isolation.support(),
            draining=self.draining,
        )


def _host_fault(operation: str, error: OSError) -> HostFault:
    return HostFault(operation, errno.errorcode.get(error.errno or 0, "?"), error.strerror or "")

"""All jobs of this host: what is asked of them is decided here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

from jobworker.errors import (
    AgentUnavailable,
    CapExceeded,
    JobAlreadyEnded,
    JobNotFound,
    JobWorkerError,
)
from jobworker.jobs import (
    EndReason,
    JobRecord,
    JobSpec,
    State,
    new_job_id,
)
from jobworker.kernel.cgroup.base import Hierarchy
from jobworker.kernel.spawn import User
from jobworker.settings.schema import JobSettings
from jobworker.supervisor.isolation import Isolation
from jobworker.supervisor.job import DEFAULT_GRACE, Job, Surroundings
from jobworker.supervisor.keys import Keys
from jobworker.supervisor.launcher import Launcher, Order
from jobworker.supervisor.limits import LimitRules, host_memory
from jobworker.supervisor.output import open_segment
from jobworker.supervisor.permits import Permits
from jobworker.supervisor.retention import Retention
from jobworker.supervisor.users import Users
from jobworker.wire.messages import HostInfo, StartJob, StopJob

Ended = Callable[[JobRecord], None]
Started = Callable[[JobRecord | JobWorkerError], None]

_RETRY_SECONDS = 5


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
        self._hierarchy = hierarchy
        self._isolation = isolation
        self._permits = permits
        self._launcher = launcher
        self._limits = LimitRules(settings, hierarchy)
        self._users = Users(settings)
        self._removed = removed
        self.retention = Retention(around.loop, around.log, store, settings, self._forget, self._users.give_back)
        self._launching: dict[str, list[Started]] = {}
        self.keys = Keys()
        self._when_idle: list[Callable[[], None]] = []
        self._when_settled: Callable[[], None] | None = None
        self._closed = False
        self.running: dict[str, Job] = {}
        self.ended: dict[str, JobRecord] = {}

    # Taking in.

    def add_running(self, job: Job) -> None:
        self._users.keep(job.record.uid)
        self.running[job.record.job_id] = job

    def add_ended(self, record: JobRecord) -> None:
        self._users.keep(record.uid)
        self.running.pop(record.job_id, None)
        self.ended[record.job_id] = record
        self.retention.add(record)

    def _forget(self, job_id: str) -> None:
        del self.ended[job_id]
        self.keys.forget(job_id)
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
        principal, permit = request.caller.principal, self._permits.start(request.caller, spec)
        if known := self.keys.find(principal, idempotency):
            self._started_before(known, started)
            return
        self._admit()
        job_id = new_job_id()
        directory = spec.workdir or self._store.jobs_path
        plan = self._limits.plan(permit.spec, directory, permit.prescribed, permit.filled)
        confinement, applied = self._isolation.decide(spec, self._store.work_path(job_id))
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
        self._launching[order.record.job_id] = [started]
        self.keys.remember(order.record, idempotency)
        try:
            self._launcher.launch(order, lambda outcome: self._launched(order, outcome))
        except JobWorkerError as error:
            self._launched(order, error)

    def _started_before(self, job_id: str, started: Started) -> None:
        if waiting := self._launching.get(job_id):
            waiting.append(started)
        else:
            started(self.inspect(job_id))

    def _launched(self, order: Order, outcome: Job | JobWorkerError) -> None:
        waiting = self._launching.pop(order.record.job_id)
        answer: JobRecord | JobWorkerError
        if isinstance(outcome, Job):
            self.add_running(outcome)
            answer = outcome.record
        else:
            self.keys.forget(order.record.job_id)
            self._users.give_back(order.own_uid)
            answer = outcome
        for started in waiting:
            started(answer)
        self._tell_settled()
        self._tell_idle()

    def _admit(self) -> None:
        active = len(self.running) + len(self._launching)
        if self._closed:
            raise AgentUnavailable("it is ending, or starting anew, and takes no jobs")
        if active >= self._settings.max_active:
            raise CapExceeded("the number of active jobs", self._settings.max_active, _RETRY_SECONDS)

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
        job = self.running.get(request.job_id)
        self._permits.stop(request.caller, job.record if job else self._ended_record(request.job_id))
        if job is None:
            reason = self._ended_record(request.job_id).end_reason
            raise JobAlreadyEnded(request.job_id, reason.value if reason else "")
        job.stop(request.signal, request.grace_ms / 1000, EndReason.STOPPED, force=request.force)
        if request.wait and not job.record.stuck:
            job.when_ended(ended)
        else:
            ended(job.inspect())

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
        return len(self.running) + len(self._launching)

    def pause(self, settled: Callable[[], None]) -> None:
        """Take no more jobs, and call back once no job is being launched: each runs or is not there."""
        self._closed = True
        self._when_settled = settled
        self._tell_settled()

    def _tell_settled(self) -> None:
        if self._when_settled and not self._launching:
            settled, self._when_settled = self._when_settled, None
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
        )

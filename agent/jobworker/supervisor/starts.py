"""Where jobs come from: what is asked for is checked, decided, and launched, or refused."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from jobworker.errors import AgentDraining, AgentUnavailable, HostFault, InvalidField, JobWorkerError
from jobworker.jobs import JobRecord, JobSpec, State, check_principal, check_request_id, new_job_id
from jobworker.kernel.cgroup.base import Hierarchy
from jobworker.kernel.spawn import User
from jobworker.limits import Limits
from jobworker.sandbox import Part
from jobworker.settings.schema import JobSettings, QuotaSettings
from jobworker.supervisor.disks import DiskAwaited, Disks
from jobworker.supervisor.isolation import Isolation
from jobworker.supervisor.job import Job
from jobworker.supervisor.keys import Keys
from jobworker.supervisor.launch import CLOSED, Order
from jobworker.supervisor.launcher import Launcher
from jobworker.supervisor.limit_profiles import Profiles
from jobworker.supervisor.limits import LimitRules, host_memory
from jobworker.supervisor.loop import SLICE
from jobworker.supervisor.permits import Permit, Permits
from jobworker.supervisor.shares import Shares
from jobworker.supervisor.surroundings import Surroundings
from jobworker.supervisor.users import Users
from jobworker.wire.callers import Caller
from jobworker.wire.host import HostInfo
from jobworker.wire.messages import Drain, Drained, StartJob, StartPlanned

Outcome = JobRecord | StartPlanned | JobWorkerError
Started = Callable[[Outcome], None]

_MAX_EARLY = 256
# What fits a message.
_MAX_ACTIVE_TOLD = 10_000


class Books(Protocol):
    """What starting needs of who keeps the jobs."""

    running: dict[str, Job]

    def inspect(self, job_id: str) -> JobRecord:
        """A job's record as of now."""

    def add_running(self, job: Job) -> None:
        """A job has been started."""

    def tell_idle(self) -> None:
        """One may have ended, or not have been started after all."""


class Starts:
    """Takes starts in, and sees each to a running job or an error.

    Attributes:
        keys: of the jobs that there are.
        limits: what becomes of those that are asked for.
        disks: that directories are on.
        shares: how much there may be of all jobs, and of one principal's.
        draining: none is taken, until somebody says so.
    """

    def __init__(
        self,
        books: Books,
        settings: JobSettings,
        quotas: QuotaSettings,
        around: Surroundings,
        hierarchy: Hierarchy,
        isolation: Isolation,
        permits: Permits,
        users: Users,
        launcher: Launcher,
        profiles: Profiles,
    ) -> None:
        self._books = books
        self._settings = settings
        self._loop = around.loop
        self._store = around.store
        self._audit = around.audit
        self._tally = around.tally
        self._hierarchy = hierarchy
        self._isolation = isolation
        self._permits = permits
        self._users = users
        self._launcher = launcher
        self._profiles = profiles
        self.disks = Disks(around.loop, self._store.jobs_path)
        self.limits = LimitRules(settings, hierarchy, lambda: profiles.value, self.disks.of)
        self.shares = Shares(settings, quotas, self._active)
        # Those under way, with who waits for each.
        self._launching: dict[str, list[Started]] = {}
        # Theirs, and those of failed ones of which a process does not go away: it takes room as a job does.
        self._orders: dict[str, Order] = {}
        # Those that came before all jobs were known: until then nobody knows which user ids and keys are in use.
        self._early: deque[tuple[StartJob, Started]] | None = deque()
        self._when_settled: list[Callable[[], None]] = []
        self._closed = False
        self.keys = Keys()
        self.draining = self._store.draining

    def begin(self) -> None:
        """All jobs of earlier lives are known: start what has waited for that, then what comes meanwhile."""
        end = time.monotonic() + SLICE
        while self._early and time.monotonic() < end:
            self._start_late(*self._early.popleft())
        if self._early:
            self._loop.call_after(0, self.begin)
        else:
            self._early = None
            self._books.tell_idle()

    @property
    def is_idle(self) -> bool:
        """No start is under way or waits until it can be, and nobody waits until there are none."""
        return not (self._launching or self._early or self._when_settled)

    def is_launching(self, job_id: str) -> bool:
        return job_id in self._launching

    def start(self, request: StartJob, started: Started) -> None:
        """Start a job; `started` gets its record once the command was executed, or what a dry run has found.

        Raises:
            JobWorkerError: why it can't be started.
        """
        request.spec.check()
        request.idempotency.check()
        check_principal(request.caller.principal, "caller.principal")
        if request.caller.request_id:
            check_request_id(request.caller.request_id, "caller.request")
        if self._early is not None:
            if len(self._early) >= _MAX_EARLY:
                raise AgentUnavailable("it has just started, and does not know all jobs yet")
            self._early.append((request, started))
        else:
            self._start(request, started)

    def _start(self, request: StartJob, started: Started) -> None:
        began = time.monotonic()
        spec, idempotency, principal = request.spec, request.idempotency, request.caller.principal
        permit = self._permits.start(request.caller, self.limits.profiled(spec))
        tell = _planned(started, permit.rule) if request.dry_run else started
        if known := self.keys.find(principal, idempotency):
            self._audit.start_repeated(request, known)
            self._started_before(known, tell)
            return
        try:
            order = self._order(request, permit)
        except DiskAwaited as awaited:
            self.disks.look(awaited.directory, spec.user, principal, lambda: self._start_late(request, started))
            return
        if request.dry_run:
            self._audit.start_planned(request, permit.rule)
            tell(_as_it_would_be(order))
            return
        self._audit.start_asked(request)
        self._users.take(order.own_uid)
        self._launching[order.record.job_id] = [tell]
        self._orders[order.record.job_id] = order
        self.keys.remember(order.record, idempotency)

        def launched(outcome: Job | JobWorkerError) -> None:
            self._launched(order, request.caller, began, outcome)

        try:
            self._launcher.launch(order, launched, lambda: self._undone(order))
        except JobWorkerError as error:
            self._undone(order)
            launched(error)

    def _start_late(self, request: StartJob, started: Started) -> None:
        try:
            self._start(request, started)
        except JobWorkerError as error:
            self._audit.start_refused(request, error)
            started(error)

    def _order(self, request: StartJob, permit: Permit) -> Order:
        """All that is decided about a start; nothing has been made for it, or taken.

        Raises:
            JobWorkerError: why it can't be started.
            DiskAwaited: something has to be found out first.
        """
        spec, principal = request.spec, request.caller.principal
        self._admit(principal)
        profile = self.limits.profile(spec.profile)
        permit.spec.limits.check()
        job_id = new_job_id()
        plan = self.limits.plan(permit.spec, spec.workdir, profile, permit.prescribed, permit.filled)
        self.shares.check_memory(principal, plan.settable.memory_bytes or 0)
        if spec.stdin_open:
            self.shares.check_stdin()
        confinement, applied = self._isolation.decide(spec, self._store.work_path(job_id))
        if plan.settable.pids == 1 and Part.PID_NAMESPACE in confinement.parts:
            problem = f"leave no room: the profile {applied.profile} has a process of its own beside the command"
            raise InvalidField("limits.pids", problem, "2")
        own_uid = None if permit.user else self._users.find()
        user = permit.user if own_uid is None else User(own_uid, own_uid)
        record = self._new_record(job_id, request.caller, spec, user.uid if user else os.geteuid())
        return Order(
            record=replace(record, sandbox=applied, profile=profile),
            spec=spec,
            user=user,
            own_uid=own_uid,
            confinement=confinement,
            limits=plan.settable,
            idempotency=request.idempotency,
            report=lambda actual: self.limits.status(plan, actual),
        )

    def _started_before(self, job_id: str, started: Started) -> None:
        if launching := self._launching.get(job_id):
            launching.append(started)
        else:
            started(self._books.inspect(job_id))

    def _launched(self, order: Order, caller: Caller, began: float, outcome: Job | JobWorkerError) -> None:
        waiting = self._launching.pop(order.record.job_id)
        answer: JobRecord | JobWorkerError
        if isinstance(outcome, Job):
            del self._orders[order.record.job_id]
            self._books.add_running(outcome)
            self._audit.started(caller, outcome.record)
            self._tally.started(time.monotonic() - began)
            answer = outcome.record
        else:
            self.keys.forget(order.record.job_id)
            self._audit.start_failed(caller, order.record, outcome)
            self._tally.start_failed()
            answer = outcome
        for started in waiting:
            started(answer)
        self._tell_settled()
        self._books.tell_idle()

    def _undone(self, order: Order) -> None:
        del self._orders[order.record.job_id]
        self._users.give_back(order.own_uid)

    def _admit(self, principal: str) -> None:
        self._profiles.check_known()
        if self._closed:
            raise AgentUnavailable(CLOSED)
        if self.draining:
            raise AgentDraining
        self.shares.check_number(principal)

    def _active(self) -> Iterator[tuple[JobRecord, Limits]]:
        for order in self._orders.values():
            yield order.record, order.limits
        for job in self._books.running.values():
            yield job.record, job.limits

    def _new_record(self, job_id: str, caller: Caller, spec: JobSpec, uid: int) -> JobRecord:
        return JobRecord(
            job_id=job_id,
            principal=caller.principal,
            request_id=caller.request_id,
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
            stdin_open=spec.stdin_open,
            stdin_bytes=len(spec.stdin),
        )

    # Taking none.

    def close(self) -> None:
        """Take no more, for good."""
        self._closed = True

    def abandon(self) -> None:
        """Take no more, for good, and do without those that are being launched."""
        self.close()
        self._launcher.abandon()

    def resume(self) -> None:
        """Take jobs again after a pause."""
        self._closed = False

    def pause(self, settled: Callable[[], None]) -> None:
        """Take no more jobs, and call back once no job is being launched: each runs or is not there."""
        self.close()
        self._when_settled.append(settled)
        self._tell_settled()

    def _tell_settled(self) -> None:
        if self._when_settled and not self._launching:
            # Not from within: who waits may execute another program, which must find the last job on record.
            self._loop.call_after(0, self._settled)

    def _settled(self) -> None:
        if not self._launching:
            callbacks, self._when_settled = self._when_settled, []
            for settled in callbacks:
                settled()
            self._books.tell_idle()

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
            raise HostFault.of("writing that the agent is draining", error) from error
        self.draining = draining
        if draining:
            self._when_settled.append(
                lambda: drained(Drained(True, tuple(self._books.running)[:_MAX_ACTIVE_TOLD]))
            )
            self._tell_settled()
        else:
            drained(Drained(False, ()))

    def host_info(self) -> HostInfo:
        return HostInfo(
            cgroup_mode=self._hierarchy.mode,
            limits=self.limits.support(),
            cpus=os.cpu_count() or 1,
            memory_bytes=host_memory(),
            max_active_jobs=self._settings.max_active,
            user_per_job=self._users.one_per_job,
            sandbox=self._isolation.default,
            isolation=self._isolation.support(),
            draining=self.draining,
            profiles=self._profiles.value,
            limits_problem=self._profiles.problem,
        )


def _planned(tell: Started, rule: str) -> Started:
    """Wrap `tell`, so that a record is told as `StartPlanned`, which answers a dry run."""
    return lambda outcome: tell(StartPlanned(outcome, rule) if isinstance(outcome, JobRecord) else outcome)


def _as_it_would_be(order: Order) -> JobRecord:
    """The record of a job that is not started, without what this alone would make it have."""
    record = order.record
    return replace(
        record,
        job_id="",
        created_ns=0,
        workdir=order.spec.workdir,
        uid=0 if order.own_uid is not None else record.uid,
        log_path="",
        limits=order.report(order.limits),
    )

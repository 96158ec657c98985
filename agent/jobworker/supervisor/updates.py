"""New limits for jobs that run: all that is asked for, or nothing is changed.

Everything that can refuse is asked first. Then the new limits go on record, then into the kernel: a supervisor
that dies in between leaves a record of what the next one sets. If the kernel refuses one after all, those that
were written are taken back, and so is the record.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import Any

from jobworker.errors import HostFault, InvalidField, LimitRefused, LimitUnsupported
from jobworker.jobs import JobRecord, JobSpec
from jobworker.limits import BY_NAME, IO, Limits
from jobworker.supervisor.audit import Audit
from jobworker.supervisor.guard import change_each, different
from jobworker.supervisor.job import Job
from jobworker.supervisor.limits import ANOTHER_VALUE
from jobworker.supervisor.log import Log
from jobworker.supervisor.permits import Permits
from jobworker.supervisor.reclaim import WAIT, Reclaims
from jobworker.supervisor.starts import Starts
from jobworker.supervisor.store import Store
from jobworker.wire.messages import UpdateJob


class Updates:
    """Gives jobs new limits."""

    def __init__(
        self, store: Store, log: Log, audit: Audit, permits: Permits, starts: Starts, reclaims: Reclaims
    ) -> None:
        self._store = store
        self._log = log
        self._audit = audit
        self._permits = permits
        self._shares = starts.shares
        self._rules = starts.limits
        self._reclaims = reclaims

    def update(self, request: UpdateJob, job: Job) -> JobRecord:
        """Give a job that the caller may update the limits that are asked for; the others stay.

        Raises:
            InvalidField: a limit is none, or more than this host allows.
            PolicyDenied: the job could not be started with them.
            LimitUnsupported: one can't be enforced here, or for this job.
            CapExceeded, QuotaExceeded: there is no room for so much memory.
            LimitRefused: the job uses more memory, or the kernel refuses.
            HostFault: the record can't be written, or the file system of the job's directory does not answer.
            DiskAwaited: it has to be found out first which disk that directory is on.
            MemoryAwaited: the kernel has to take back memory first.
        """
        asked, record, group = request.limits, job.record, job.group
        if not any(asked.given()):
            raise InvalidField("limits", "name nothing that is to change", "memory 512M")
        asked.check(alone=False)
        self._permits.limits(request.caller, record, self._spec(record, _merged(job.limits, asked)))
        plan = self._rules.plan_change(asked, self._workdir(record))
        for name, _ in asked.given():
            if reason := group.lacking(name) or _moved(name, plan.settable, job.limits):
                raise LimitUnsupported(name, reason)
        changes = _written(plan.settable, job.limits, swap=not self._rules.lacks("swap"))
        self._check_memory(job, changes, force=request.force)
        statuses = self._rules.status(plan, changes)
        try:
            before = group.limits(changes.io_device)
            job.update_limits(
                _merged(job.limits, changes), statuses, lambda: self._write(job, asked, changes, before)
            )
        except OSError as error:
            raise HostFault.of("changing the job's limits", error) from error
        self._audit.updated(request, record.limits, job.record.limits)
        return job.inspect()

    def _spec(self, record: JobRecord, limits: Limits) -> JobSpec:
        """As which the job would be started again."""
        return JobSpec(
            command=record.command,
            args=record.args,
            env=tuple((name, "") for name in record.env_names),
            workdir=self._workdir(record),
            limits=limits,
            labels=record.labels,
            sandbox=record.sandbox.profile,
            user=record.user,
            # What it has read decides nothing, but that it did.
            stdin_open=record.stdin_open or record.stdin_bytes > 0,
        )

    def _workdir(self, record: JobRecord) -> str:
        """As it was asked for: empty for the job's own directory."""
        return "" if record.workdir == self._store.work_path(record.job_id) else record.workdir

    def _check_memory(self, job: Job, changes: Limits, *, force: bool) -> None:
        if (memory := changes.memory_bytes) is None:
            return
        self._reclaims.check_other(job)
        if memory > (held := job.limits.memory_bytes or 0):
            self._shares.check_memory(job.record.principal, memory, held)
        used, show = job.inspect().usage.memory_bytes, BY_NAME["memory"].show
        too_much = memory < used and memory != job.limits.memory_bytes
        if too_much and not force:
            advice = "with force the kernel takes back what it can, and ends processes for the rest or refuses"
            raise LimitRefused("memory", f"the job has {show(used)}, more than {show(memory)}; {advice}")
        # With v1 the kernel takes back what was swapped as well.
        if not too_much and (changes.swap_bytes or 0) >= (job.limits.swap_bytes or 0):
            return
        try:
            self._reclaims.check(job, Limits(memory_bytes=memory, swap_bytes=changes.swap_bytes))
        except OSError as error:
            raise LimitRefused("memory", _refusal(error)) from error

    def _write(self, job: Job, asked: Limits, changes: Limits, before: Limits) -> None:
        """Write, and read back.

        Raises:
            LimitRefused: by the kernel; all is as it was.
        """
        name, problem = "", ""
        # Swap that was asked for alone is written with the memory that the job has.
        names = [name for name, _ in asked.given()]
        try:
            for part in changes.parts():
                name = next(name for name, _ in part.given() if name in names)
                job.group.apply(part)
            if off := different(job.group.limits(changes.io_device), changes):
                name, problem = off[0], ANOTHER_VALUE
        except OSError as error:
            problem = _refusal(error)
        if problem:
            self.put_back(job, changes, before)
            raise LimitRefused(name, problem)

    def put_back(self, job: Job, changes: Limits, before: Limits) -> None:
        """Have the kernel take limits as they were before changes."""
        fields = [BY_NAME[name].field for name, _ in changes.given()]
        values = {field: getattr(before, field) for field in fields}
        new = {field: getattr(changes, field) for field in fields if values[field] is None}
        device = changes.io_device
        problems = change_each(job.group.apply, Limits(**values, io_device=device))
        problems |= change_each(job.group.lift, Limits(**new, io_device=device))
        if problems:
            # The guard sees what a job was given before, and says what it can't set again.
            self._log.error("limits not put back", job=job.record.job_id, problems=problems)


def _refusal(error: OSError) -> str:
    """Why the kernel does not take a limit."""
    if error.errno == errno.ETIMEDOUT:
        return f"the job uses more, and the kernel has not taken that back within {WAIT:g} s"
    refusal = errno.errorcode.get(error.errno or 0, "?")
    problem = f"the kernel refuses it: {refusal} ({os.path.basename(error.filename or '')})"
    if error.errno == errno.EBUSY:
        problem += ": the job uses more, which cannot be taken back"
    return problem


def _moved(name: str, limits: Limits, held: Limits) -> str:
    """Why a limit can't be for the same disk as those that the job has; empty if it can."""
    if name not in IO or held.io_device in (None, limits.io_device):
        return ""
    return f"its directory was on the disk {held.io_device} at its start, and is on another now"


def _merged(limits: Limits, changes: Limits) -> Limits:
    """Limits with others in the place of some."""
    values: dict[str, Any] = {BY_NAME[name].field: value for name, value in changes.given()}
    return replace(limits, **values, io_device=changes.io_device or limits.io_device)


def _written(limits: Limits, held: Limits, *, swap: bool) -> Limits:
    """What is to be written, as the kernel keeps it: memory and swap belong together.

    Args:
        limits: that were asked for.
        held: what the job has.
        swap: the kernel accounts for it.

    Raises:
        InvalidField: swap without a limit of memory.
    """
    if limits.memory_bytes is None and limits.swap_bytes is None:
        return limits
    memory = held.memory_bytes if limits.memory_bytes is None else limits.memory_bytes
    beyond = held.swap_bytes if limits.swap_bytes is None else limits.swap_bytes
    if memory is None:
        raise InvalidField("limits.swap", "is nothing without limits.memory, and the job has none", "memory 64M")
    return replace(limits, memory_bytes=memory, swap_bytes=(beyond or 0) if swap else None)

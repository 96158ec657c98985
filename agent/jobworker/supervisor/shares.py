"""How many jobs there may be, and how much memory limits may be together: of all jobs, and of one principal's."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jobworker.errors import CapExceeded, InvalidField, QuotaExceeded
from jobworker.jobs import JobRecord
from jobworker.limits import Limits
from jobworker.settings.schema import JobSettings, QuotaSettings
from jobworker.units import format_size

_RETRY_SECONDS = 5
# Each has memory of the agent's, and two places more in the service manager's store of descriptors.
MAX_OPEN_STDIN = 500

# Of each job that has not ended: its record, and what it is limited to.
Active = Callable[[], Iterable[tuple[JobRecord, Limits]]]


class Shares:
    """Says whether there is room for one more job.

    Args:
        jobs, quotas: the settings.
        active: the jobs that have not ended, those that are being launched included.
    """

    def __init__(self, jobs: JobSettings, quotas: QuotaSettings, active: Active) -> None:
        self._jobs = jobs
        self._quotas = quotas
        self._active = active

    def check_number(self, principal: str) -> None:
        """Check that the principal may have one more job.

        Raises:
            CapExceeded: there are as many jobs as there may be.
            QuotaExceeded: the principal has as many as one may have.
        """
        active = tuple(self._active())
        if len(active) >= self._jobs.max_active:
            raise CapExceeded("the number of active jobs (jobs.max_active)", self._jobs.max_active, _RETRY_SECONDS)
        if most := self._quotas.active_jobs:
            have = sum(record.principal == principal for record, _ in active)
            if have >= most:
                raise QuotaExceeded("active_jobs", most, have, 0)

    def check_stdin(self) -> None:
        """Check that one more job may have an open standard input.

        Raises:
            CapExceeded: as many have one as may.
        """
        if sum(record.stdin_open for record, _ in self._active()) >= MAX_OPEN_STDIN:
            raise CapExceeded("the number of jobs with an open standard input", MAX_OPEN_STDIN, _RETRY_SECONDS)

    def check_memory(self, principal: str, memory: int, held: int = 0) -> None:
        """Check that a job of the principal's may be limited to so many bytes of memory.

        Args:
            principal: whose job.
            memory: 0 for no limit.
            held: what it is limited to already.

        Raises:
            InvalidField: it is more than all jobs may have together.
            CapExceeded: all jobs together would have more than they may.
            QuotaExceeded: the principal's would.
        """
        own = everyones = -held
        for record, limits in self._active():
            everyones += limits.memory_bytes or 0
            own += (limits.memory_bytes or 0) * (record.principal == principal)
        most, each = self._jobs.max_jobs_memory_bytes, self._quotas.jobs_memory_bytes
        if most and memory > most:
            problem = f"{format_size(memory)} is more than all jobs may have together here (jobs.max_jobs_memory)"
            raise InvalidField("limits.memory", problem, format_size(most))
        if memory and most and everyones + memory > most:
            cap = "the bytes of memory that all jobs are limited to together (jobs.max_jobs_memory)"
            raise CapExceeded(cap, most, _RETRY_SECONDS)
        if memory and each and own + memory > each:
            raise QuotaExceeded("jobs_memory", each, own, 0)

"""What there is to tell at the moment, as the messages that tell it."""

from __future__ import annotations

from jobworker.errors import JobNotFound
from jobworker.jobs import JobRecord
from jobworker.supervisor.policies import Policies
from jobworker.supervisor.registry import Registry
from jobworker.wire import messages


class News:
    """Made when it is sent: of what has changed often meanwhile, the last is told."""

    def __init__(self, registry: Registry, policies: Policies) -> None:
        self._registry = registry
        self._policies = policies

    def policy(self) -> messages.PolicyIs:
        """The policy in force."""
        return messages.PolicyIs(self._policies.value, self._policies.problem)

    def host(self) -> messages.HostIs:
        """The host, with the limits that there are."""
        return messages.HostIs(self._registry.starts.host_info())

    def drained(self) -> messages.DrainChanged:
        """Whether new jobs are taken."""
        return messages.DrainChanged(self._registry.starts.draining)

    def synced(self) -> messages.Synced:
        """Word that all jobs have been reported."""
        revisions = self._registry.revisions
        return messages.Synced(revisions.newest, revisions.removed, revisions.began)

    def job(self, job_id: str) -> messages.JobChanged:
        """A job as of its last change."""
        return messages.JobChanged(self._record(job_id))

    def log(self, job_id: str) -> messages.LogGrew:
        """How far a job's log goes."""
        if running := self._registry.running.get(job_id):
            return messages.LogGrew(job_id, running.log_bytes, output_ended=False, lost_bytes=running.lost_bytes)
        try:
            record = self._registry.inspect(job_id)
        except JobNotFound:
            return messages.LogGrew(job_id, 0, output_ended=True)
        return messages.LogGrew(job_id, record.log_bytes, output_ended=True, lost_bytes=record.lost_bytes)

    def _record(self, job_id: str) -> JobRecord:
        running = self._registry.running.get(job_id)
        return running.record if running else self._registry.inspect(job_id)

"""Idempotency keys: which job a client's key has started, so that a repeated start does not make a second one."""

from __future__ import annotations

from jobworker.errors import IdempotencyConflict
from jobworker.jobs import Idempotency, JobRecord


class Keys:
    """What is known by principal and key, for as long as the job's record is."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[str, str]] = {}
        self._of_job: dict[str, tuple[str, str]] = {}

    def remember(self, record: JobRecord, idempotency: Idempotency) -> None:
        if idempotency.key:
            name = (record.principal, idempotency.key)
            self._known[name] = (record.job_id, idempotency.digest)
            self._of_job[record.job_id] = name

    def forget(self, job_id: str) -> None:
        """The job was not started after all, or is removed."""
        name = self._of_job.pop(job_id, None)
        # Of one that a failing disk kept on record, when the client has tried again, the key is another's by now.
        if name and self._known.get(name, ("", ""))[0] == job_id:
            del self._known[name]

    def find(self, principal: str, idempotency: Idempotency) -> str | None:
        """The id of the job that this key has started; None for a new key or none.

        Raises:
            IdempotencyConflict: the key was used for another specification.
        """
        known = self._known.get((principal, idempotency.key)) if idempotency.key else None
        if known is None:
            return None
        job_id, digest = known
        if digest != idempotency.digest:
            raise IdempotencyConflict(idempotency.key, job_id)
        return job_id

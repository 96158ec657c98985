"""The ends of jobs, by a watch that begins with a snapshot."""

from __future__ import annotations

from collections.abc import Iterable

from jobworker.api.v1 import job_pb2
from jobworker.client.changes import Changed, Event, Mark, Removed, Restarted
from jobworker.client.failures import CallFailed, WaitTimedOut
from jobworker.errors import JobNotFound, JobWorkerError


def timed_out(failure: CallFailed, job_ids: Iterable[str]) -> JobWorkerError:
    """What it means for those who wait for these jobs that the watch has failed."""
    return WaitTimedOut(tuple(job_ids)) if failure.code == "DEADLINE_EXCEEDED" else failure


class Active:
    """The jobs that have not ended, of all that a watch with a snapshot has told of."""

    def __init__(self) -> None:
        self.job_ids = set[str]()
        self._complete = False

    def take(self, event: Event) -> int | None:
        """Take an event in; how many there are, or None while not all have been told of."""
        match event:
            case Changed(job) if job.state != job_pb2.JOB_STATE_ENDED:
                self.job_ids.add(job.id)
            case Changed(job):
                self.job_ids.discard(job.id)
            case Removed(job_id):
                self.job_ids.discard(job_id)
            case Mark(snapshot_complete=True):
                self._complete = True
            case Restarted():
                self.job_ids, self._complete = set(), False
        return len(self.job_ids) if self._complete else None


class Waiting:
    """The jobs whose ends have not been seen."""

    def __init__(self, job_ids: tuple[str, ...]) -> None:
        self.job_ids = dict.fromkeys(job_ids)
        self._seen: set[str] = set()

    def take(self, event: Event) -> job_pb2.Job | None:
        """The job, if this is the end of one that was waited for."""
        match event:
            case Changed(job):
                # Others come as well where there are too many to be named.
                if job.id in self.job_ids:
                    self._seen.add(job.id)
                if job.state == job_pb2.JOB_STATE_ENDED and job.id in self.job_ids:
                    del self.job_ids[job.id]
                    return job
            case Removed(job_id) if job_id in self.job_ids:
                raise JobNotFound(job_id)
            case Mark(snapshot_complete=True):
                for job_id in self.job_ids.keys() - self._seen:
                    raise JobNotFound(job_id)
            case Restarted():
                self._seen.clear()
        return None

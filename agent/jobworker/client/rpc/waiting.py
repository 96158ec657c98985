"""The ends of jobs, from a watch that begins with a snapshot."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from jobworker.api.v1 import job_pb2
from jobworker.client.changes import Changed, Event, Mark, Removed, Restarted
from jobworker.client.failures import CallFailed, WaitTimedOut
from jobworker.errors import JobNotFound


def ends(events: Generator[Event, None, None], job_ids: tuple[str, ...]) -> Iterator[job_pb2.Job]:
    """Each of the jobs once it has ended; closes the watch behind the last.

    Raises:
        JobNotFound: one of them is not there.
        WaitTimedOut: the watch has come to its deadline.
    """
    waiting = _Waiting(job_ids)
    try:
        for event in events:
            if job := waiting.take(event):
                yield job
            if not waiting.job_ids:
                return
    except CallFailed as failure:
        if failure.code == "DEADLINE_EXCEEDED":
            raise WaitTimedOut(tuple(waiting.job_ids)) from None
        raise
    finally:
        events.close()


def idle(events: Generator[Event, None, None]) -> None:
    """Follow a watch of all jobs, with a snapshot, until each that it told of has ended.

    Raises:
        WaitTimedOut: the watch has come to its deadline.
    """
    active, complete = set[str](), False
    try:
        for event in events:
            match event:
                case Changed(job) if job.state != job_pb2.JOB_STATE_ENDED:
                    active.add(job.id)
                case Changed(job):
                    active.discard(job.id)
                case Removed(job_id):
                    active.discard(job_id)
                case Mark(snapshot_complete=True):
                    complete = True
                case Restarted():
                    active, complete = set(), False
            if complete and not active:
                return
    except CallFailed as failure:
        if failure.code == "DEADLINE_EXCEEDED" and active:
            raise WaitTimedOut(tuple(sorted(active))) from None
        raise
    finally:
        events.close()


class _Waiting:
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

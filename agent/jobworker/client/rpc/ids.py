"""The ids of jobs in answers: shown as they are, so an agent that means ill must not choose them freely."""

from __future__ import annotations

from jobworker import jobs
from jobworker.api.v1 import job_pb2
from jobworker.errors import InvalidField, ProtocolError


def checked_id(text: str) -> str:
    """Return `text` if it is a whole job id.

    Raises:
        ProtocolError: it is not.
    """
    try:
        return jobs.check_job_id(text)
    except InvalidField as error:
        raise ProtocolError(f"the agent has named a job, and {error.problem}") from None


def checked(job: job_pb2.Job) -> job_pb2.Job:
    """Return the job if its id is one.

    Raises:
        ProtocolError: it is not.
    """
    checked_id(job.id)
    return job

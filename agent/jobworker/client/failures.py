"""What can go wrong for a client, as types with fields; none of them needs grpc to be imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jobworker.errors import JobWorkerError, TlsProblem


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that the agent refused, as google.rpc.BadRequest has it."""

    field: str
    problem: str


# What went wrong is the agent's own affair, and stands in its log.
_OF_THE_AGENT = ("INTERNAL", "UNKNOWN", "DATA_LOSS")


@dataclass(eq=False)
class CallFailed(JobWorkerError):
    """A call came back with an error.

    Attributes:
        code: the gRPC status code's name, e.g. `NOT_FOUND`.
        message: the agent's own sentence, or grpc's where the agent did not answer.
        reason: stable and made for programs, e.g. `JOB_NOT_FOUND` (google.rpc.ErrorInfo); empty where the
            agent did not answer.
        metadata: the fields of the reason, e.g. `{"job_id": …}`.
        violations: the fields of the request that are wrong.
        retry_seconds: when to try again, if the agent said that; else 0.
        request_id: that the agent's log and its audit trail have of the call; empty where it was not made.
    """

    code: str
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[FieldViolation, ...] = ()
    retry_seconds: float = 0.0
    request_id: str = ""

    def __str__(self) -> str:
        text = self.message or f"the agent answered {self.code}"
        return f"{text} (request {self.request_id})" if self.code in _OF_THE_AGENT and self.request_id else text


@dataclass(eq=False)
class AmbiguousId(JobWorkerError):
    """More than one job's id begins like this.

    Attributes:
        candidates: ids of some of them.
    """

    prefix: str
    candidates: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.prefix} is the beginning of more than one job's id: {', '.join(self.candidates)}"


@dataclass(eq=False)
class NothingMatches(JobWorkerError):
    """No active job has these labels."""

    labels: Mapping[str, str]

    def __str__(self) -> str:
        wanted = " ".join(f"{key}={value}" for key, value in self.labels.items())
        return f"no active job has the labels {wanted}; `worker-client list` shows the jobs there are"


@dataclass(eq=False)
class WaitTimedOut(JobWorkerError):
    """Jobs that were waited for have not ended in time.

    Attributes:
        job_ids: of those; none if the agent has not told in time which ones there are.
    """

    job_ids: tuple[str, ...]

    def __str__(self) -> str:
        if not self.job_ids:
            return "the agent has not told in time which jobs are active"
        others = f" and {len(self.job_ids) - 1} more" if len(self.job_ids) > 1 else ""
        return f"job {self.job_ids[0]}{others} has not ended in time; it goes on"


@dataclass(eq=False)
class SettingsMissing(JobWorkerError):
    """Where the agent is, or what to prove oneself with, was not said.

    Attributes:
        names: the settings that are missing, of `addr`, `ca`, `cert`, `key`.
        path: the context file that would be read.
        context: the context that was chosen; empty for none.
    """

    names: tuple[str, ...]
    path: str
    context: str = ""

    def __str__(self) -> str:
        flags = " ".join(f"--{name}" for name in self.names)
        variables = " ".join(f"JOBWORKER_{name.upper()}" for name in self.names)
        place = f"context {self.context!r}" if self.context else "a context"
        return (
            f"missing: {', '.join(self.names)}; give {flags}, or set {variables}, "
            f"or put {'it' if len(self.names) == 1 else 'them'} into {place} of {self.path}"
        )


@dataclass(eq=False)
class CredentialsUnusable(JobWorkerError):
    """With one's own files no agent lets one in; none was called.

    Attributes:
        cause: what is wrong with which file.
    """

    cause: TlsProblem

    def __str__(self) -> str:
        return str(self.cause)


@dataclass(eq=False)
class ForkedClient(JobWorkerError):
    """This process was forked from one that had made a client; no client works in it."""

    def __str__(self) -> str:
        return (
            "this process was forked from one that had made a client, and no client works in it; start it by the "
            "method `spawn` or `forkserver` of multiprocessing, or make no client before the fork"
        )


@dataclass(eq=False)
class NotIdle(JobWorkerError):
    """Jobs are active that the caller may not see."""

    active: int

    def __str__(self) -> str:
        return f"{self.active} jobs that you may not see are active; ask somebody who may, or wait and look again"

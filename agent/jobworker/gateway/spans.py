"""What a trace tells of a call, gathered where it is known; `tracing` makes spans of it, where that is wanted.

Nothing here holds what a request does, which may be secret, nor who asked: the log and the audit trail have that,
by the request's id.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from jobworker.jobs import JobRecord

# In a call's metadata: the caller's own span (W3C Trace Context).
TRACEPARENT = "traceparent"


@dataclass(slots=True)
class Launch:
    """The supervisor's part of a Start. Times are nanoseconds of Unix time, 0 for not.

    Attributes:
        asked_ns: when the supervisor was asked.
        answered_ns: and answered, or was given up.
        record: of the job that it answered with; None for an error.
        error: the type of that.
    """

    asked_ns: int
    answered_ns: int = 0
    record: JobRecord | None = None
    error: str = ""


# In the context of a Start's own task, as `access.CALLER` is.
LAUNCH: ContextVar[Launch | None] = ContextVar("launch", default=None)


@contextmanager
def launching() -> Iterator[Launch]:
    """Measure what the supervisor is asked meanwhile; who asks puts the record there."""
    launch = Launch(time.time_ns())
    LAUNCH.set(launch)
    try:
        yield launch
    except Exception as error:
        launch.error = type(error).__name__
        raise
    finally:
        launch.answered_ns = time.time_ns()


@dataclass(frozen=True, slots=True)
class EndedCall:
    """A call from its arrival to its end. Times are nanoseconds of Unix time.

    Attributes:
        method: as `calls.label` has it.
        code: the gRPC status.
        reason: by what rule it was refused; empty if it was not.
        role: the caller's; empty for one that was not let in.
        request_id: what log and audit trail name it by.
        job_id: what it was about; empty if that is not known.
        traceparent: what its client has sent, whatever that is; empty for nothing.
        launch: of a job, where there was one.
    """

    method: str
    code: str
    reason: str
    role: str
    request_id: str
    job_id: str
    traceparent: str
    arrived_ns: int
    ended_ns: int
    launch: Launch | None


class Tracer(Protocol):
    """Is told of each call that has ended."""

    def ended(self, call: EndedCall) -> None:
        """Take it in; never waits, nor fails."""

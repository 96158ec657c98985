"""Changes of jobs as frozen items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from jobworker.api.v1.job_pb2 import Job


@dataclass(frozen=True, slots=True)
class Changed:
    """A job that is new or has changed, as it is now; in a snapshot, one that is there.

    Attributes:
        token: where to resume behind this; empty within a snapshot.
    """

    job: Job
    token: str


@dataclass(frozen=True, slots=True)
class Removed:
    """A job that is not kept any more."""

    job_id: str
    token: str


@dataclass(frozen=True, slots=True)
class Mark:
    """No change, but a token to remember.

    Attributes:
        snapshot_complete: a snapshot ends here; a job that was not in it does not exist.
    """

    token: str
    snapshot_complete: bool


@dataclass(frozen=True, slots=True)
class Restarted:
    """What had to be told next is not known to the agent any more: a snapshot follows, and a mark behind it.

    Attributes:
        reason: in the agent's words.
    """

    reason: str


Event: TypeAlias = Changed | Removed | Mark | Restarted

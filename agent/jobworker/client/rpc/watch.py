"""Changes of jobs across broken connections: nothing is left out, and what can't be told is said."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client.changes import Changed, Event, Mark, Removed, Restarted
from jobworker.client.failures import CallFailed
from jobworker.client.rpc import ids
from jobworker.client.rpc.backoff import Backoff
from jobworker.client.rpc.retries import UNAVAILABLE, Breaks

EXPIRED = "WATCH_EXPIRED"


@dataclass(slots=True)
class Standing:
    """Where a watcher is.

    Attributes:
        token: behind the last event; empty for none yet.
        snapshot: a snapshot has been begun and not completed, or is to be.
    """

    token: str
    snapshot: bool


class Resumption:
    """A watch that is opened again wherever it breaks; progress is an answer.

    Args:
        standing: where to begin.
        backoff: attempts without progress, and their pauses.
        deadline: a pause until then is the last one; on the monotonic clock.
    """

    def __init__(self, standing: Standing, backoff: Backoff, deadline: float = math.inf) -> None:
        self.standing = standing
        self._deadline = deadline
        self._breaks = Breaks(backoff)
        self._heard = False

    def event(self, response: pb.WatchResponse) -> Event | None:
        """What an answer tells; None for nothing that this client knows."""
        self._heard = True
        self._breaks.progress()
        return _event(response)

    def stand(self, response: pb.WatchResponse) -> None:
        """Whoever watches has had what this answer tells."""
        if response.resume_token:
            self.standing.token, self.standing.snapshot = response.resume_token, False

    def broke(self, failure: CallFailed | None) -> tuple[Restarted | None, float]:
        """What to tell of a break, and how long to wait, in seconds, before the watch is opened again.

        Raises:
            CallFailed: another attempt cannot mend it, there were too many, or the first token is not good any
                more.
        """
        if failure and failure.reason == EXPIRED and self._heard:
            # Of what went on meanwhile only the outcome is known.
            self.standing.token, self.standing.snapshot = "", True
            return Restarted(failure.message), 0.0
        pause = self._breaks.pause(failure or CallFailed(UNAVAILABLE, "the watch broke off"))
        # Jobs of the first part may have gone since.
        within = self._heard and self.standing.snapshot
        return Restarted("the connection broke within a snapshot") if within else None, pause

    def left(self, pause: float) -> float:
        """So much of a pause as the deadline leaves; `check` is for behind it."""
        return min(pause, max(0.0, self._deadline - time.monotonic()))

    def check(self) -> None:
        """Check that there is time left.

        Raises:
            CallFailed: there is none.
        """
        if time.monotonic() >= self._deadline:
            raise CallFailed("DEADLINE_EXCEEDED", "the watch has come to its time-out")


def _event(response: pb.WatchResponse) -> Event | None:
    """One answer as an event; `None` for a kind that this client does not know.

    Raises:
        ProtocolError: it names a job by what is no id.
    """
    token = response.resume_token
    match response.WhichOneof("event"):
        case "job":
            return Changed(ids.checked(response.job), token)
        case "removed_job_id":
            return Removed(ids.checked_id(response.removed_job_id), token)
        case "mark":
            return Mark(token, response.mark.snapshot_complete)
        case _:
            return None

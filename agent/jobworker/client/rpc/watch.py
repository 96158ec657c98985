"""Changes of jobs across broken connections: nothing is left out, and what can't be told is said."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client.changes import Changed, Event, Mark, Removed, Restarted
from jobworker.client.failures import CallFailed
from jobworker.client.rpc.backoff import Backoff

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


def resumed(
    open_at: Callable[[Standing], Iterable[pb.WatchResponse]],
    standing: Standing,
    backoff: Backoff,
    deadline: float = math.inf,
) -> Generator[Event, None, None]:
    """The events of a watch that is opened again wherever it breaks.

    Args:
        open_at: opens the watch; what it raises as UNAVAILABLE is a break.
        standing: where to begin.
        backoff: attempts without progress, and their pauses. Progress is an answer.
        deadline: a pause until then is the last one; on the monotonic clock.

    Raises:
        JobWorkerError: what another attempt cannot mend, the last of too many breaks, or that the first token is
            not good any more.
    """
    pauses = backoff.pauses()
    heard = False
    while True:
        try:
            for response in open_at(standing):
                heard, pauses = True, backoff.pauses()
                if event := _event(response):
                    yield event
                _stand(standing, response)
            failure = CallFailed("UNAVAILABLE", "the watch broke off")
        except CallFailed as error:
            if error.reason == EXPIRED and heard:
                # Of what went on meanwhile only the outcome is known.
                standing.token, standing.snapshot = "", True
                yield Restarted(error.message)
                continue
            if error.code != "UNAVAILABLE":
                raise
            failure = error
        pause = next(pauses, None)
        if pause is None:
            raise failure
        if heard and standing.snapshot:
            # Jobs of the first part may have gone since.
            yield Restarted("the connection broke within a snapshot")
        if (left := deadline - time.monotonic()) <= pause:
            time.sleep(max(0.0, left))
            raise CallFailed("DEADLINE_EXCEEDED", "the watch has come to its time-out")
        time.sleep(pause)


def _stand(standing: Standing, response: pb.WatchResponse) -> None:
    if response.resume_token:
        standing.token, standing.snapshot = response.resume_token, False


def _event(response: pb.WatchResponse) -> Event | None:
    """One answer as an event; `None` for a kind that this client does not know."""
    token = response.resume_token
    match response.WhichOneof("event"):
        case "job":
            return Changed(response.job, token)
        case "removed_job_id":
            return Removed(response.removed_job_id, token)
        case "mark":
            return Mark(token, response.mark.snapshot_complete)
        case _:
            return None

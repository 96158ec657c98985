"""When a call that has failed may be made again; nothing here waits, or knows how calls are made."""

from __future__ import annotations

import math
import time

from jobworker.client.failures import CallFailed
from jobworker.client.rpc.backoff import Backoff

UNAVAILABLE = "UNAVAILABLE"
ONCE = Backoff(attempts=0)
# A restarting agent is back in seconds: three of them for a call that someone waits for, 25 for a stream.
READ = Backoff(attempts=5)
STREAM = Backoff(attempts=10)

_DRAINING = "AGENT_DRAINING"
_QUOTA = "QUOTA_EXCEEDED"
# On top of what the agent says: all that were refused are told the same.
_TURNS = Backoff(attempts=8, first=0.1, longest=1.0)
# Whatever it says, in seconds: it is not to decide how long a program stands still.
_LONGEST_TURN = 60.0


class Retries:
    """The further attempts of one call.

    Args:
        backoff: those while the agent is UNAVAILABLE; for idempotent methods only. What is refused for coming too
            fast was not done: that is tried again, whatever the method, when the agent says.
        deadline: on the monotonic clock; no attempt is made later.
    """

    def __init__(self, backoff: Backoff = ONCE, deadline: float = math.inf) -> None:
        self._pauses, self._turns = backoff.pauses(), _TURNS.pauses()
        self._deadline = deadline

    def pause(self, failure: CallFailed) -> float:
        """How long to wait before the next attempt, in seconds.

        Raises:
            CallFailed: the failure, if there is to be none.
        """
        pause = self._turn(failure)
        # Who drains an agent means it to stay so.
        if failure.code == UNAVAILABLE and failure.reason != _DRAINING:
            pause = next(self._pauses, None)
        if pause is None or time.monotonic() + pause > self._deadline:
            raise failure
        return pause

    def _turn(self, failure: CallFailed) -> float | None:
        """The time after which what came too fast may come again; None for any other failure."""
        if failure.reason != _QUOTA or not failure.retry_seconds or (spread := next(self._turns, None)) is None:
            return None
        return min(failure.retry_seconds, _LONGEST_TURN) + spread


class Breaks:
    """The attempts to go on with a stream, of which there are as many again after each progress.

    Args:
        backoff: attempts without progress, and their pauses.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._pauses = backoff.pauses()

    def progress(self) -> None:
        self._pauses = self._backoff.pauses()

    def pause(self, failure: CallFailed) -> float:
        """How long to wait before the stream is opened again, in seconds.

        Raises:
            CallFailed: the failure, if another attempt cannot mend it, or there were too many.
        """
        if failure.code != UNAVAILABLE:
            raise failure
        return self.again(failure)

    def again(self, failure: CallFailed) -> float:
        """The same for a failure that another attempt can mend, whatever its code."""
        if (pause := next(self._pauses, None)) is None:
            raise failure
        return pause

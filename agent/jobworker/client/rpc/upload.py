"""What is written to a job's standard input across broken connections: in order, without a gap, and nothing twice.

What was sent and is not known to be taken is kept, to be sent again. That is bounded: who writes more has to wait.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client.failures import CallFailed
from jobworker.client.rpc import requests
from jobworker.client.rpc.backoff import Backoff
from jobworker.client.rpc.retries import UNAVAILABLE, Breaks, Retries
from jobworker.jobs import MAX_STDIN_BYTES

_ENDED, _OFFSET, _INTERNAL = "STDIN_ENDED", "STDIN_OFFSET", "INTERNAL"
# As much as may be under way.
_WINDOW = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Written:
    """How far a job's standard input goes.

    Attributes:
        taken: bytes of it that the agent has taken, from the first one on; where to go on.
        ended: and its end.
    """

    taken: int
    ended: bool


@dataclass(slots=True)
class _Call:
    """The present call. The next one begins with none of this, and sends again what is not known to be taken.

    Attributes:
        opened: when, in seconds of the monotonic clock.
        answered: the agent takes what is written by it.
        sent: what was sent by it and is not known to be taken.
        end_sent: and the end.
    """

    opened: float = field(default_factory=time.monotonic)
    answered: bool = False
    sent: deque[bytes] = field(default_factory=deque)
    end_sent: bool = False


class Upload:
    """What is to be written, over however many calls.

    Args:
        job_id: whose standard input it is.
        offset: where the first byte belongs; None for behind what was taken before.
        backoff: attempts without progress, and their pauses. Progress is an answer to something that was sent,
            or a call that was answered and lasted longer than the longest of them: input may be idle for hours.
    """

    def __init__(self, job_id: str, offset: int | None, backoff: Backoff) -> None:
        if offset is not None:
            requests.check_number("offset", offset)
        self._job_id = job_id
        self._taken = offset
        # What comes behind what the present call has sent, and how many bytes the two are.
        self._unsent: deque[bytes] = deque()
        self._bytes = 0
        self._end_added = self._end_taken = False
        self._call = _Call()
        # A call was answered, be it the present one or not.
        self._begun = False
        self._breaks, self._turns, self._long = Breaks(backoff), Retries(), backoff.longest

    @property
    def is_full(self) -> bool:
        """Nothing should be added before more has been taken."""
        return self._bytes >= _WINDOW

    @property
    def nothing_is_due(self) -> bool:
        """All that was added so far has been taken, and the end if it was; more may be added."""
        return self._call.answered and not self._bytes and self._end_added == self._end_taken

    @property
    def is_complete(self) -> bool:
        """All was taken, and the end: there is nothing to make another call for."""
        return self.nothing_is_due and self._end_taken

    @property
    def is_sent(self) -> bool:
        """All that was added was sent by the present call, and the end if it was."""
        return self._call.answered and not self._unsent and self._end_added == self._call.end_sent

    @property
    def written(self) -> Written:
        """As far as is known."""
        return Written(self._taken or 0, self._end_taken)

    def add(self, data: bytes) -> None:
        for start in range(0, len(data), MAX_STDIN_BYTES):
            self._unsent.append(data[start : start + MAX_STDIN_BYTES])
        self._bytes += len(data)

    def end(self) -> None:
        """Nothing will be added any more, and the job shall find the end."""
        self._end_added = True

    def open(self) -> pb.WriteStdinRequest:
        """The first message of a call."""
        self._unsent.extendleft(reversed(self._call.sent))
        self._call = _Call()
        # The agent knows better where a call has got to that was cut off: `answer` checks that it can be.
        return requests.write_stdin(self._job_id, None if self._begun else self._taken)

    def due(self) -> list[pb.WriteStdinRequest]:
        """Messages to be sent now, in this order; each is told once a call."""
        if not self._call.answered or self._call.end_sent:
            return []
        messages = [pb.WriteStdinRequest(data=piece) for piece in self._unsent]
        self._call.sent.extend(self._unsent)
        self._unsent.clear()
        if self._end_added:
            self._call.end_sent = True
            if messages:
                messages[-1].end = True
            else:
                messages.append(pb.WriteStdinRequest(end=True))
        return messages

    def answer(self, response: pb.WriteStdinResponse) -> None:
        """Take in what the agent said.

        Raises:
            CallFailed: it has taken what did not come from here.
        """
        if self._call.answered:
            self._breaks.progress()
        self._advance(response.taken, ended=response.ended)

    def _advance(self, taken: int, *, ended: bool) -> None:
        """So much of the input was taken, and maybe its end: keep nothing of it any more."""
        self._call.answered = self._begun = True
        self._end_taken = ended
        before = taken if self._taken is None else self._taken
        gone = taken - before
        if not 0 <= gone <= self._bytes:
            problem = f"{taken} bytes were taken, between {before} and {before + self._bytes} were sent"
            message = f"somebody else writes to the standard input of job {self._job_id}: {problem}"
            raise CallFailed("ABORTED", message, metadata={"taken": str(taken)})
        self._taken = taken
        self._bytes -= gone
        while gone:
            pieces = self._call.sent or self._unsent
            piece = pieces.popleft()
            if len(piece) > gone:
                pieces.appendleft(piece[gone:])
            gone = max(0, gone - len(piece))

    def pause(self, failure: CallFailed | None) -> float:
        """How long to wait before the next call, in seconds; `failure` is how this one ended.

        If `nothing_is_due` then, another call is needed only for what is still to be added.

        Raises:
            CallFailed: another call cannot mend it, or there were too many.
        """
        failure = failure or CallFailed(UNAVAILABLE, "the call ended before all was taken")
        if self._call.answered and time.monotonic() - self._call.opened > self._long:
            self._breaks.progress()
        if self._is_lost_answer(failure):
            self._advance(self._whole, ended=True)
            return 0.0
        # After a break, the call that was cut off may have come further than this one was told.
        if failure.code == UNAVAILABLE or (failure.reason == _OFFSET and self._begun):
            return self._breaks.again(failure)
        # grpc.aio puts this in the place of the agent's own answer when that overtakes what is being sent
        # (https://github.com/grpc/grpc/issues/36066); the next call is answered before it sends anything.
        if failure.code == _INTERNAL and not failure.reason:
            return self._breaks.again(failure)
        return self._turns.pause(failure)

    def _is_lost_answer(self, failure: CallFailed) -> bool:
        """All was taken, and the end, which is why nothing more is; the answer to that was lost."""
        may_have_ended = self._begun and self._end_added
        return failure.reason == _ENDED and may_have_ended and failure.metadata.get("taken") == str(self._whole)

    @property
    def _whole(self) -> int:
        """How much of the input will have been taken once all that was added has been, in bytes."""
        return self.written.taken + self._bytes

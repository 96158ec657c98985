"""In which order calls and pieces of streams are worked on: those of each principal in a line of their own.

grpc hands calls over one after the other in the order in which they came, and takes some rounds of the event loop
for each: the more is being worked on, the longer. So a crowd of calls would wait inside grpc, where nobody is told
apart, and everybody else behind it. Here few of each principal are worked on at a time, and before the next one
is, grpc hands over what it has: the crowd waits here, and a call of another principal passes it by.

A stream that catches up has its next piece ready as soon as grpc has taken the last one. Hundreds of them would be
a crowd in each round of the event loop, and in grpc's own thread; so few pieces of each principal are with grpc.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType

# One thread does all the work: a second call fills the gaps of the first, and more make none of them quicker.
_AT_WORK = 2
# Whatever takes longer waits for somebody else, the supervisor as a rule, and holds up nobody meanwhile.
_TURN_SECONDS = 0.02
# A piece that grpc has not taken by then waits for its reader.
_PIECE_SECONDS = 0.005
# Rounds of the event loop in which grpc hands over a call, if it has one; and for how long such calls go before.
_ROUNDS, _PATIENCE_SECONDS = 8, 0.02


@dataclass(slots=True)
class _Line:
    """The calls, or pieces, of one principal.

    Attributes:
        at_work: how many have their turn, or are about to.
        under_way: the turns that are not over, the oldest first.
        waiting: who has none.
        timer: for the end of the oldest turn, where somebody waits.
    """

    principal: str
    at_work: int = 0
    under_way: deque[Turn] = field(default_factory=deque)
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    timer: asyncio.TimerHandle | None = None


class Turns:
    """The lines of all principals that have calls, or pieces, under way. Quotas bound how many wait in one.

    Args:
        of_pieces: these do not come by way of grpc, which is not waited for then.
    """

    def __init__(self, *, of_pieces: bool = False) -> None:
        self._seconds, self._rounds = (_PIECE_SECONDS, 0) if of_pieces else (_TURN_SECONDS, _ROUNDS)
        self._lines: dict[str, _Line] = {}
        self._come = 0

    def turn(self, principal: str) -> Turn:
        """Wait for a turn, which is over with the work; or when that takes long, and goes on without."""
        return Turn(self, principal)

    async def begin(self, turn: Turn) -> None:
        self._come += 1
        line = self._lines.get(turn.principal) or self._lines.setdefault(turn.principal, _Line(turn.principal))
        if line.at_work < _AT_WORK:
            line.at_work += 1
        else:
            await self._wait(line)
        turn.line, turn.until = line, asyncio.get_running_loop().time() + self._seconds
        line.under_way.append(turn)
        self._watch(line)

    async def _wait(self, line: _Line) -> None:
        come: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.waiting.append(come)
        self._watch(line)
        try:
            await come
        except asyncio.CancelledError:
            if not come.cancelled():
                # It had come just then.
                self._next(line)
            raise

    def end(self, turn: Turn) -> None:
        line = turn.line
        if line and turn in line.under_way:
            line.under_way.remove(turn)
            self._next(line)

    def _watch(self, line: _Line) -> None:
        """Have a turn end in time that holds somebody up; most are over before anybody waits, with no timer."""
        if line.waiting and line.under_way and not line.timer:
            line.timer = asyncio.get_running_loop().call_at(line.under_way[0].until, self._end_overdue, line)

    def _end_overdue(self, line: _Line) -> None:
        line.timer, now = None, asyncio.get_running_loop().time()
        while line.under_way and line.under_way[0].until <= now:
            line.under_way.popleft()
            self._next(line)
        self._watch(line)

    def _next(self, line: _Line) -> None:
        """Hand a turn that is over to who has waited longest."""
        if line.waiting:
            self._hand_on(line, asyncio.get_running_loop().time() + _PATIENCE_SECONDS, self._come, self._rounds)
        else:
            self._end(line)

    def _hand_on(self, line: _Line, until: float, come: int, rounds: int) -> None:
        """Do it once no call has come for so many rounds, or at a time of the loop's clock."""
        loop = asyncio.get_running_loop()
        if rounds and loop.time() < until:
            rounds = rounds - 1 if come == self._come else self._rounds
            loop.call_soon(self._hand_on, line, until, self._come, rounds)
            return
        while line.waiting:
            turn = line.waiting.popleft()
            # Who has gone meanwhile is passed over.
            if not turn.done():
                turn.set_result(None)
                return
        self._end(line)

    def _end(self, line: _Line) -> None:
        line.at_work -= 1
        if not line.at_work:
            del self._lines[line.principal]


class Turn:
    """One, as a context manager."""

    __slots__ = ("_turns", "line", "principal", "until")

    def __init__(self, turns: Turns, principal: str) -> None:
        self._turns, self.principal = turns, principal
        self.line: _Line | None = None
        self.until = 0.0

    async def __aenter__(self) -> None:
        await self._turns.begin(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._turns.end(self)

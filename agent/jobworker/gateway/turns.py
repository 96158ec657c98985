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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

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
    """Of one principal's calls, how many have their turn, and which wait for it."""

    principal: str
    at_work: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Turns:
    """The lines of all principals that have calls, or pieces, under way. Quotas bound how many wait in one.

    Args:
        of_pieces: these do not come by way of grpc, which is not waited for then.
    """

    def __init__(self, *, of_pieces: bool = False) -> None:
        self._seconds, self._rounds = (_PIECE_SECONDS, 0) if of_pieces else (_TURN_SECONDS, _ROUNDS)
        self._lines: dict[str, _Line] = {}
        self._come = 0

    @asynccontextmanager
    async def turn(self, principal: str) -> AsyncIterator[None]:
        """Wait for a turn, which is over with the work; or when that takes long, and goes on without."""
        self._come += 1
        line = self._lines.setdefault(principal, _Line(principal))
        await self._wait(line)
        loop = asyncio.get_running_loop()
        ending = loop.call_later(self._seconds, self._next, line)
        try:
            yield
        finally:
            # Else it is over already, or about to be.
            if ending.when() > loop.time():
                ending.cancel()
                self._next(line)

    async def _wait(self, line: _Line) -> None:
        if line.at_work < _AT_WORK:
            line.at_work += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # It had come just then.
                self._next(line)
            raise

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

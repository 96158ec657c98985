"""What clients write to a job's standard input, on its way to the supervisor: as fast as the job reads.

A call has one piece under way. What of it the supervisor had no room for is written again when there is some, and
until then nothing more is read from the client, whom grpc's flow control stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.gateway import incoming
from jobworker.gateway.link import Lost, SupervisorLink
from jobworker.wire.callers import Caller
from jobworker.wire.messages import StdinRoom, StdinTaken, WriteStdin


class StdinWriters:
    """All calls that write."""

    def __init__(self, link: SupervisorLink) -> None:
        self._link = link
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def apply(self, message: Any) -> None:
        """Take in what the supervisor said."""
        match message:
            case StdinRoom(job_id):
                self._wake(job_id)
            case Lost():
                # The next supervisor does not know who waits.
                for job_id in self._waiting:
                    self._wake(job_id)

    def _wake(self, job_id: str) -> None:
        for event in self._waiting.get(job_id, ()):
            event.set()

    async def answers(
        self, caller: Caller, requests: AsyncIterator[pb.WriteStdinRequest]
    ) -> AsyncGenerator[pb.WriteStdinResponse, None]:
        """Write all that comes; an answer for each piece.

        Raises:
            JobWorkerError: a piece was not taken, or not known to be.
        """
        first = incoming.stdin(caller, await anext(requests))
        with self._room(first.job_id) as room:
            if first.offset is None:
                begin = await self._once(replace(first, data=b"", end=False))
                first = replace(first, offset=begin.taken)
            message = first
            while True:
                taken = await self._whole(message, room)
                yield pb.WriteStdinResponse(taken=taken, ended=message.end)
                if message.end or (request := await anext(requests, None)) is None:
                    return
                message = incoming.more_stdin(first, taken, request)

    @contextmanager
    def _room(self, job_id: str) -> Iterator[asyncio.Event]:
        """What is set when a call that found no room has to look again."""
        room = asyncio.Event()
        waiting = self._waiting.setdefault(job_id, set())
        waiting.add(room)
        try:
            yield room
        finally:
            waiting.discard(room)
            if not waiting:
                self._waiting.pop(job_id, None)

    async def _whole(self, message: WriteStdin, room: asyncio.Event) -> int:
        """Write one piece to its end; how much the job's input has then."""
        while True:
            room.clear()
            answer = await self._once(message)
            if answer.whole:
                return answer.taken
            written = answer.taken - (message.offset or 0)
            message = replace(message, offset=answer.taken, data=message.data[written:])
            await room.wait()

    async def _once(self, message: WriteStdin) -> StdinTaken:
        # Not repeated: a supervisor that went away may have taken it, which the client learns when it resumes.
        answer, _ = await self._link.ask(message, StdinTaken, repeatable=False)
        return answer

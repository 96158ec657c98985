"""One who reads a watch of a gateway that has been told of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from jobworker import policy
from jobworker.gateway.changes import Watched
from jobworker.gateway.mirror import Mirror
from jobworker.gateway.watch import Sees, Told, Watch, read_token
from jobworker.jobs import JobRecord
from jobworker.wire.messages import (
    PROTOCOL,
    JobChanged,
    PolicyIs,
    Synced,
    Welcome,
)
from support.scripted_supervisor import HOST

EPOCH = "agent boot"
WELCOME = Welcome(PROTOCOL, HOST, "1.0", PolicyIs(policy.default((), "standard"), ""), EPOCH)
EVERYTHING = Watched()
T = TypeVar("T")


def filled(*records: JobRecord, newest: int = 100, removed: int = 1, began: int = 1) -> Mirror:
    """What a gateway knows once a supervisor has told of these."""
    mirror = Mirror()
    tell(mirror, WELCOME, *(JobChanged(known) for known in records), Synced(newest, removed, began))
    return mirror


def tell(mirror: Mirror, *messages: Any) -> None:
    for message in messages:
        mirror.apply(message)


class Watcher:
    """One who reads a watch as far as there is something to read."""

    def __init__(
        self,
        mirror: Mirror,
        watched: Watched = EVERYTHING,
        *,
        resume: str = "",
        snapshot: bool = False,
        sees: Sees = lambda _: True,
    ) -> None:
        since = None
        if resume:
            epoch, since = read_token(resume)
            mirror.changes.check(epoch, since)
        self._messages: AsyncGenerator[Told, None] = Watch(
            mirror, watched, sees, since, snapshot=snapshot
        ).messages()
        self._next: asyncio.Future[Told] | None = None
        self.token = resume

    async def read(self, most: int = 1_000_000) -> list[Any]:
        """What is there: states by number of the job, None for one that is gone, marks as what they are."""
        read = list[Any]()
        while len(read) < most:
            if self._next is None:
                self._next = asyncio.ensure_future(anext(self._messages))
            for _ in range(6):
                await asyncio.sleep(0)
            if not self._next.done():
                break
            told, self._next = self._next.result(), None
            self.token = told.token or self.token
            assert told.message.resume_token == told.token
            read.append(_plain(told))
        return read

    async def leave(self) -> None:
        if self._next:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self._messages.aclose()


def _plain(told: Told) -> Any:
    message = told.message
    match message.WhichOneof("event"):
        case "job":
            return number(message.job.id), message.job.state
        case "removed_job_id":
            return number(message.removed_job_id), None
        case _:
            return "complete" if message.mark.snapshot_complete else "mark"


def number(text: str) -> int:
    return int(text.replace("-", ""))


def run(scenario: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(scenario(), 60)

    return asyncio.run(bounded())

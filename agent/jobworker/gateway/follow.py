"""How far a job's log goes, live: one subscription per job, however many follow it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from jobworker.errors import JobNotFound, JobWorkerError
from jobworker.gateway.link import Lost, SupervisorLink
from jobworker.jobs import JobRecord
from jobworker.wire.messages import (
    Done,
    FollowLog,
    InspectJob,
    JobChanged,
    JobRemoved,
    JobReply,
    LogGrew,
    UnfollowLog,
)


@dataclass(slots=True, eq=False)
class Feed:
    """One job's log as its followers see it.

    Attributes:
        log_bytes: the offset up to which it may be read.
        output_ended: it will not grow any more.
        lost_bytes: of these, this much could not be written.
    """

    job_id: str
    log_bytes: int = 0
    output_ended: bool = False
    lost_bytes: int = 0
    followers: int = 0
    _failure: JobWorkerError | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    subscribing: asyncio.Task[None] | None = None

    def grow(self, to: LogGrew | JobRecord) -> None:
        # Never back: of a job that was removed the supervisor says 0.
        self.log_bytes = max(to.log_bytes, self.log_bytes)
        self.lost_bytes = max(to.lost_bytes, self.lost_bytes)
        self.output_ended = to.output_ended or self.output_ended
        self._wake()

    def fail(self, error: JobWorkerError) -> None:
        self._failure = error
        self._wake()

    def _wake(self) -> None:
        # Wakes all who wait now; who comes later looks at the state first.
        self._news.set()
        self._news.clear()

    async def beyond(self, offset: int) -> int:
        """Wait for output behind this offset; where the log ends then. No more than `offset`: it has ended.

        Raises:
            JobWorkerError: there is no more to be had: the job was removed, or the supervisor stays away.
        """
        while self.log_bytes <= offset and not self.output_ended:
            if self._failure:
                raise self._failure
            await self._news.wait()
        return self.log_bytes


class Feeds:
    """The feeds of all jobs that are followed."""

    def __init__(self, link: SupervisorLink) -> None:
        self._link = link
        self._feeds: dict[str, Feed] = {}
        self._background: set[asyncio.Task[Any]] = set()

    @property
    def followers(self) -> int:
        """How many streams are told of new output as it comes."""
        return sum(feed.followers for feed in self._feeds.values())

    def apply(self, message: Any) -> None:
        """Take in what the supervisor said."""
        match message:
            case LogGrew(job_id) if job_id in self._feeds:
                self._feeds[job_id].grow(message)
            case JobChanged(record) | JobReply(record) if record.job_id in self._feeds:
                self._feeds[record.job_id].grow(record)
            case JobRemoved(job_id) if job_id in self._feeds:
                self._feeds[job_id].fail(JobNotFound(job_id))
            case Lost():
                for feed in self._feeds.values():
                    self._subscribe(feed)

    async def catch_up(self) -> None:
        """Take in how far the logs that are followed go now, as far as the supervisor is there to tell."""
        if not self._link.connected:
            return
        growing = [job_id for job_id, feed in self._feeds.items() if not feed.output_ended]
        # The answers come by `apply`: they overtake the news, which would say the same.
        asked = (self._link.ask(InspectJob(job_id), JobReply, repeatable=False) for job_id in growing)
        await asyncio.gather(*asked, return_exceptions=True)

    @asynccontextmanager
    async def follow(self, job_id: str) -> AsyncIterator[Feed]:
        """The job's feed; it is kept up to date until the last of its followers leaves."""
        feed = self._feeds.get(job_id)
        if feed is None:
            feed = self._feeds[job_id] = Feed(job_id)
            self._subscribe(feed)
        feed.followers += 1
        try:
            yield feed
        finally:
            feed.followers -= 1
            if not feed.followers:
                self._leave(feed)

    def _subscribe(self, feed: Feed) -> None:
        if feed.subscribing is None or feed.subscribing.done():
            feed.subscribing = asyncio.create_task(self._ask_to_follow(feed))

    async def _ask_to_follow(self, feed: Feed) -> None:
        try:
            # The answer comes by `apply`, as all news of a job do.
            await self._link.ask(FollowLog(feed.job_id), JobReply, repeatable=True)
        except JobWorkerError as error:
            feed.fail(error)
            self._drop(feed)

    def _drop(self, feed: Feed) -> bool:
        """Let another feed take the place of this one, if that has not happened yet."""
        if self._feeds.get(feed.job_id) is not feed:
            return False
        del self._feeds[feed.job_id]
        return True

    def _leave(self, feed: Feed) -> None:
        if feed.subscribing:
            feed.subscribing.cancel()
        if self._drop(feed):
            unfollowing = asyncio.create_task(self._unfollow(feed.job_id))
            self._background.add(unfollowing)
            unfollowing.add_done_callback(self._background.discard)

    async def _unfollow(self, job_id: str) -> None:
        with suppress(JobWorkerError):
            await self._link.ask(UnfollowLog(job_id), Done, repeatable=False)

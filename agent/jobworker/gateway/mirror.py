"""The supervisor's jobs as the gateway knows them, kept by the supervisor's events.

Answers what does not need the job itself: everything of an ended job, and lists. For 10,000 ended jobs this is
as quick as for ten: there is no walk over all jobs, and no sort.
"""

from __future__ import annotations

import asyncio
import functools
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import structlog

from jobworker.errors import AgentUnavailable, JobNotFound
from jobworker.gateway.changes import Changes
from jobworker.gateway.known import Known, Wanted, known
from jobworker.gateway.link import PATIENCE_SECONDS, Lost
from jobworker.gateway.order import Position, Timelines
from jobworker.jobs import ACTIVE, JobRecord, State
from jobworker.wire.host import HostInfo
from jobworker.wire.messages import (
    DrainChanged,
    Drained,
    HostIs,
    JobChanged,
    JobRemoved,
    JobReply,
    LogGrew,
    Synced,
    Welcome,
)

_SHARED_VALUES = 1024

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class MirrorStatistics:
    """What the mirror has seen.

    Attributes:
        jobs: that exist, by state.
        connects: to the supervisor.
        synced: the supervisor is there and has told of all jobs.
        host: None before the supervisor has been heard.
    """

    jobs: dict[State, int]
    connects: int
    synced: bool
    host: HostInfo | None


class Mirror:
    """All jobs of the supervisor; their owner in the gateway.

    Attributes:
        changes: what has become of them, in its order.
    """

    def __init__(self) -> None:
        self.changes = Changes()
        self._jobs: dict[str, Known] = {}
        self._ids: list[str] = []
        self._timelines = Timelines()
        self._awaited: dict[str, asyncio.Event] = {}
        self._share = functools.lru_cache(_SHARED_VALUES)(lambda value: value)
        self._host: HostInfo | None = None
        self._supervisor_version = ""
        self._connects = 0
        # Of the connection.
        self._synced = asyncio.Event()
        self._unconfirmed: set[str] = set()
        self._reported = 0
        self._problem = "the supervisor has not reported its jobs yet"

    def apply(self, message: Any) -> None:
        """Take in what the supervisor said."""
        match message:
            case JobChanged(record):
                self._take_in(record)
                # An answer is news of its job, but may overtake the changes of others.
                if job := self._jobs.get(record.job_id):
                    self.changes.changed(job, record.revision)
            case JobReply(record):
                self._take_in(record)
            case LogGrew():
                self._grow(message)
            case JobRemoved(job_id, revision):
                self._remove(job_id, revision)
            case HostIs(host):
                self._host = host
            case Drained(draining) | DrainChanged(draining) if self._host:
                self._host = replace(self._host, draining=draining)
            case _:
                self._apply_to_all(message)

    def _apply_to_all(self, message: Any) -> None:
        match message:
            case Welcome(host=host, version=version, epoch=epoch):
                self._host, self._supervisor_version = host, version
                self._connects += 1
                self._unconfirmed = set(self._jobs)
                self.changes.begin(epoch)
            case Synced(revision, removed, began):
                for job_id in self._unconfirmed:
                    self._remove(job_id, removed)
                self._unconfirmed = set()
                self._synced.set()
                self.changes.synced(revision, removed, began)
            case Lost(problem):
                self._synced.clear()
                self._problem = problem
                for job_id in tuple(self._awaited):
                    self._wake(job_id)
                self.changes.wake_all()

    def _take_in(self, record: JobRecord) -> None:
        try:
            self._put(known(record, self._share))
        except ValueError as error:
            # A number that the contract has no room for: the other jobs must not suffer from this one.
            _log.error("a job that cannot be told of", job=record.job_id, problem=str(error))

    def _put(self, job: Known) -> None:
        self._reported += 1
        self._unconfirmed.discard(job.job_id)
        old = self._jobs.get(job.job_id)
        self._jobs[job.job_id] = job
        if old is None:
            insort(self._ids, job.job_id)
        if old is None or old.keys() != job.keys():
            if old is not None:
                self._timelines.remove(old.position, old.keys())
            self._timelines.add(job.position, job.keys())
        self._wake(job.job_id)

    def _grow(self, to: LogGrew) -> None:
        job = self._jobs.get(to.job_id)
        # Never back: of a job that was removed the supervisor says 0.
        if job is not None and to.log_bytes >= job.log_bytes:
            self._jobs[to.job_id] = replace(
                job,
                log_bytes=to.log_bytes,
                lost_bytes=max(to.lost_bytes, job.lost_bytes),
                output_ended=to.output_ended,
            )

    def _remove(self, job_id: str, revision: int) -> None:
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self.changes.removed(job, revision)
            self._timelines.remove(job.position, job.keys())
            del self._ids[bisect_left(self._ids, job_id)]
            self._wake(job_id)

    def _wake(self, job_id: str) -> None:
        awaited = self._awaited.pop(job_id, None)
        if awaited:
            awaited.set()

    async def current(self) -> None:
        """Wait until every job that exists is known.

        Raises:
            AgentUnavailable: the supervisor is not there, or has stopped telling.
        """
        while not self._synced.is_set():
            reported = self._reported
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self._synced.wait()
            except TimeoutError:
                if self._reported == reported:
                    raise AgentUnavailable(self._problem) from None

    async def host(self) -> HostInfo:
        """What the supervisor said of its host.

        Raises:
            AgentUnavailable: it has not said so yet, or is not there.
        """
        await self.current()
        if self._host is None:
            raise AgentUnavailable(self._problem)
        return self._host

    @property
    def supervisor_version(self) -> str:
        """Of the supervisor's program; empty before it has been heard."""
        return self._supervisor_version

    def get(self, job_id: str) -> Known | None:
        """A job as last heard of; None for one that is not known now."""
        return self._jobs.get(job_id)

    async def find(self, job_id: str) -> Known:
        """A job as last heard of.

        Raises:
            JobNotFound: there is no such job.
            AgentUnavailable: whether there is one is not known at the moment.
        """
        if job_id not in self._jobs:
            await self.current()
        job = self._jobs.get(job_id)
        if job is None:
            raise JobNotFound(job_id)
        return job

    async def wait_for(self, job_id: str, reached: Callable[[Known], bool]) -> Known:
        """Wait until a job is as wanted.

        Raises:
            JobNotFound: the job was removed.
            AgentUnavailable: the supervisor stays away.
        """
        while True:
            await self.current()
            job = await self.find(job_id)
            if reached(job):
                return job
            await self._awaited.setdefault(job_id, asyncio.Event()).wait()

    def page(
        self,
        wanted: Wanted,
        before: Position | None,
        size: int,
        shown: Callable[[Known], bool] = lambda _: True,
    ) -> list[Known]:
        """Up to `size` jobs that may be shown, newest first, older than `before`."""
        found = (self._jobs[job_id] for _, job_id in self._candidates(wanted, before))
        return list(islice((job for job in found if wanted.fits(job) and shown(job)), size))

    def _candidates(self, wanted: Wanted, before: Position | None) -> Iterator[Position]:
        if not wanted.id_prefix:
            return self._timelines.fewest(wanted.choices(), before)
        # "~" is behind every character of an id.
        start, end = (bisect_left(self._ids, wanted.id_prefix + tail) for tail in ("", "~"))
        positions = (self._jobs[job_id].position for job_id in self._ids[start:end])
        return iter(sorted((p for p in positions if before is None or p < before), reverse=True))

    def active(self) -> int:
        """How many jobs have not ended."""
        return self._timelines.count(ACTIVE)

    def oldest_active(self, most: int) -> list[str]:
        """Ids of jobs that have not ended, those that were made first."""
        return [job_id for _, job_id in self._timelines.oldest(ACTIVE, most)]

    def statistics(self) -> MirrorStatistics:
        return MirrorStatistics(
            jobs={state: self._timelines.count((state,)) for state in State},
            connects=self._connects,
            synced=self._synced.is_set(),
            host=self._host,
        )

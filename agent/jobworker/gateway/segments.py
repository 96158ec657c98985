"""Segments of jobs' logs, read through descriptors that the supervisor has opened."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict

from jobworker.errors import ProtocolError
from jobworker.gateway.compressed import Blocks, Compressed
from jobworker.gateway.index import Index
from jobworker.gateway.link import SupervisorLink
from jobworker.wire.messages import LogSegment, OpenLog

# Followers of a job are mostly at the same place, and halving a log looks at no more.
OF_ONE_JOB = 16

Key = tuple[str, int]


class Segment:
    """One segment and its index.

    Its descriptors live as long as the object: whoever holds it can read, whatever has become of the cache.

    Attributes:
        start: the absolute offset of its first byte.
        index: what is known of its bytes.
        why_short: why it has fewer bytes than the supervisor has told of.
    """

    __slots__ = ("_compressed", "_data", "index", "start", "why_short")

    def __init__(self, start: int, data: int, index: int, compressed: Compressed | None = None) -> None:
        self.start, self._data, self.index, self._compressed = start, data, Index(index), compressed
        self.why_short = "its compressed file is damaged" if compressed else "the log is shorter than it was"

    def __del__(self) -> None:
        os.close(self._data)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from an absolute offset on; fewer where the segment ends, or is damaged.

        Raises:
            OSError: the disk fails.
        """
        if self._compressed:
            return self._compressed.read(offset - self.start, size)
        return os.pread(self._data, size, offset - self.start)

    def was_replaced(self, offset: int) -> bool:
        """True if somebody has removed the file before it came to have this absolute offset: another one may."""
        status = os.fstat(self._data)
        return not (self._compressed or status.st_nlink) and status.st_size <= offset - self.start

    def missing_until(self, offset: int, end: int) -> int:
        """Where output goes on behind an absolute offset at which there is none, or `end` if not before that."""
        if self._compressed:
            return min(end, self.start + self._compressed.damage_ends(offset - self.start))
        return end


class Segments:
    """Open segments, those that were used last: so many in all, and so many of one job.

    What is open takes its room on the disk, though the supervisor has removed it.
    """

    def __init__(self, link: SupervisorLink, maximum: int) -> None:
        self._link = link
        self._maximum = maximum
        self._blocks = Blocks()
        self._open: OrderedDict[Key, Segment] = OrderedDict()
        self._opening: dict[Key, asyncio.Task[Segment]] = {}

    async def get(self, job_id: str, number: int, offset: int | None = None) -> Segment:
        """A segment of a job's log.

        Args:
            job_id: whose log.
            number: of the segment.
            offset: an absolute one at which the supervisor has told of output.

        Raises:
            OutputDropped: it is not there any more.
            JobWorkerError: the supervisor does not hand it out.
        """
        key = (job_id, number)
        segment = self._open.get(key)
        if segment is None or (offset is not None and segment.was_replaced(offset)):
            return await asyncio.shield(self._opening.get(key) or self._begin(key))
        self._open.move_to_end(key)
        return segment

    def _begin(self, key: Key) -> asyncio.Task[Segment]:
        """Open a segment once for all who want it at the moment."""
        task = self._opening[key] = asyncio.create_task(self._fetch(key))

        def done(task: asyncio.Task[Segment]) -> None:
            # After `forget` another one may be opening it.
            if self._opening.get(key) is task:
                del self._opening[key]

        task.add_done_callback(done)
        return task

    async def _fetch(self, key: Key) -> Segment:
        answer, descriptors = await self._link.ask(OpenLog(*key), LogSegment, repeatable=True)
        with descriptors:
            if len(descriptors) != len(("data", "index")):
                raise ProtocolError(f"{len(descriptors)} descriptors with a log segment")
            segment = self._segment(answer, *descriptors.take())
        self._open[key] = segment
        ours = [other for other in self._open if other[0] == key[0]]
        if len(ours) > OF_ONE_JOB:
            del self._open[ours[0]]
        elif len(self._open) > self._maximum:
            self._open.popitem(last=False)
        return segment

    def _segment(self, answer: LogSegment, data: int, index: int) -> Segment:
        compressed = Compressed(data, answer.length, self._blocks) if answer.length else None
        return Segment(answer.start, data, index, compressed)

    def forget(self, job_id: str) -> None:
        """Let go of a job's segments, those that are being opened included."""
        for key in [key for key in self._open if key[0] == job_id]:
            del self._open[key]
        for key in [key for key in self._opening if key[0] == job_id]:
            # Not for who comes now: a task that was cancelled goes on for a while.
            self._opening.pop(key).cancel()

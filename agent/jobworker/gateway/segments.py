"""Segments of jobs' logs, read through descriptors that the supervisor has opened."""

from __future__ import annotations

import asyncio
import os
import struct
from collections import OrderedDict

from jobworker.errors import ProtocolError
from jobworker.gateway.link import SupervisorLink
from jobworker.wire.messages import LogSegment, OpenLog

# Absolute offset, length, source, time in nanoseconds of Unix time; in the order of the offsets.
INDEX_RECORD = struct.Struct("<QIB3xQ")
_INDEX_BLOCK = 1024

Key = tuple[str, int]


class Segment:
    """One segment and its index.

    Its descriptors live as long as the object: whoever holds it can read, whatever has become of the cache.

    Attributes:
        start: the absolute offset of its first byte.
    """

    __slots__ = ("_data", "_index", "start")

    def __init__(self, start: int, data: int, index: int) -> None:
        self.start, self._data, self._index = start, data, index

    def __del__(self) -> None:
        os.close(self._data)
        os.close(self._index)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from an absolute offset on; fewer where the segment ends.

        Raises:
            OSError: the disk fails.
        """
        return os.pread(self._data, size, offset - self.start)

    def run(self, offset: int, end: int, source: int) -> tuple[int, int]:
        """The next range that a source wrote, between two absolute offsets.

        It may be empty, and end before `end`, where nothing of this source was found so far: so that one call
        looks at a bounded part of the index.

        A byte belongs to the last record that begins at or before it, since that record may still grow.
        """
        first = self._record_at(offset)
        block = os.pread(self._index, _INDEX_BLOCK * INDEX_RECORD.size, first * INDEX_RECORD.size)
        whole = len(block) // INDEX_RECORD.size * INDEX_RECORD.size
        records = [(o, s) for o, _, s, _ in INDEX_RECORD.iter_unpack(block[:whole]) if o < end]
        # Behind a full block there are records that have not been looked at.
        limit = max(records[-1][0], offset + 1) if len(records) == _INDEX_BLOCK else end
        start = next((max(o, offset) for o, s in records if s == source), limit)
        stop = next((o for o, s in records if o > start and s != source), limit)
        return min(start, limit), min(stop, limit)

    def _record_at(self, offset: int) -> int:
        """The number of the last record that begins at or before the offset; 0 where there is none."""
        low, high = 0, os.fstat(self._index).st_size // INDEX_RECORD.size
        while high - low > 1:
            middle = (low + high) // 2
            if self._offset_of(middle) <= offset:
                low = middle
            else:
                high = middle
        return low

    def _offset_of(self, number: int) -> int:
        record = os.pread(self._index, INDEX_RECORD.size, number * INDEX_RECORD.size)
        return int(INDEX_RECORD.unpack(record)[0])


class Segments:
    """Open segments, those that were used last, up to a maximum."""

    def __init__(self, link: SupervisorLink, maximum: int) -> None:
        self._link = link
        self._maximum = maximum
        self._open: OrderedDict[Key, Segment] = OrderedDict()
        self._opening: dict[Key, asyncio.Task[Segment]] = {}

    async def get(self, job_id: str, number: int) -> Segment:
        """A segment of a job's log.

        Raises:
            OutputDropped: it is not there any more.
            JobWorkerError: the supervisor does not hand it out.
        """
        key = (job_id, number)
        segment = self._open.get(key)
        if segment is None:
            return await asyncio.shield(self._opening.get(key) or self._begin(key))
        self._open.move_to_end(key)
        return segment

    def _begin(self, key: Key) -> asyncio.Task[Segment]:
        """Open a segment once for all who want it at the moment."""
        task = self._opening[key] = asyncio.create_task(self._fetch(key))
        task.add_done_callback(lambda _: self._opening.pop(key))
        return task

    async def _fetch(self, key: Key) -> Segment:
        answer, descriptors = await self._link.ask(OpenLog(*key), LogSegment, repeatable=True)
        with descriptors:
            if len(descriptors) != len(("data", "index")):
                raise ProtocolError(f"{len(descriptors)} descriptors with a log segment")
            segment = Segment(answer.start, *descriptors.take())
        self._open[key] = segment
        if len(self._open) > self._maximum:
            self._open.popitem(last=False)
        return segment

    def forget(self, job_id: str) -> None:
        """Let go of a job's segments, those that are being opened included."""
        for key in [key for key in self._open if key[0] == job_id]:
            del self._open[key]
        for key, task in self._opening.items():
            if key[0] == job_id:
                task.cancel()

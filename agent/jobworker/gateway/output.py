"""A job's output as the messages of a stream: read once, encoded once, sent to any number of followers."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.errors import HostFault, InvalidField, OutputDropped
from jobworker.gateway import line_pieces, pieces
from jobworker.gateway.index import UNKNOWN, Span
from jobworker.gateway.line_pieces import Step
from jobworker.gateway.lines import Standing
from jobworker.gateway.pieces import SOURCES, Part, Piece, Shared
from jobworker.gateway.seek import Log, View, locate, pass_over
from jobworker.gateway.segments import Segment, Segments
from jobworker.jobs import OutputFormat
from jobworker.wire.output_index import LOST, NOT_WRITTEN

# Larger chunks gain little speed and make a stalled follower hold more.
CHUNK_BYTES = 256 * 1024

T = TypeVar("T")


class Extent(Protocol):
    """How far a job's log goes."""

    @property
    def log_bytes(self) -> int: ...

    @property
    def output_ended(self) -> bool: ...

    @property
    def lost_bytes(self) -> int: ...

    async def beyond(self, offset: int) -> int:
        """Wait for output behind this offset; where the log ends then. No more than `offset`: it has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """What is there at one moment."""

    log_bytes: int
    output_ended: bool
    lost_bytes: int = 0

    async def beyond(self, _offset: int) -> int:
        return self.log_bytes


class Output:
    """Reads logs for all streams."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._readers: Counter[str] = Counter()
        self._pieces = Shared[Piece]()
        self._steps = Shared[Step]()

    def pieces(self, log: Log, offset: int, extent: Extent) -> AsyncGenerator[Piece, None]:
        """The messages of a stream from an offset on, the last of which is its `OutputEnd`.

        Raises:
            InvalidField: the output ends before the offset.
            JobWorkerError: the log can't be read.
        """
        read = self._bytes if log.format is OutputFormat.BINARY else self._lines
        return read(log, offset, extent)

    async def _bytes(self, log: Log, offset: int, extent: Extent) -> AsyncGenerator[Piece, None]:
        with self._reading(log.job_id):
            while (end := await extent.beyond(offset)) > offset:
                part = Part(log, offset, end, lossy=extent.lost_bytes > 0)
                piece = await self._read(part, self._piece, _dropped)
                if not piece.message:
                    piece = Piece(b"", await self._pass_over(log, piece.stop, end))
                offset = piece.stop
                yield piece
        _check_within(offset, end)
        yield pieces.ending(offset, output_ended=extent.output_ended)

    async def _lines(self, log: Log, offset: int, extent: Extent) -> AsyncGenerator[Piece, None]:
        at = Standing.at(offset)
        with self._reading(log.job_id):
            while (end := await extent.beyond(max(offset, at.read))) > at.read:
                _check_within(offset, end)
                part = Part(log, at.read, end, lossy=extent.lost_bytes > 0)
                step = await self._step(part, at)
                at = step.standing
                if not step.pieces:
                    stop = await self._pass_over(log, at.read, end)
                    step = line_pieces.pass_over(Part(log, at.read, stop, part.lossy), at)
                    at = step.standing
                for piece in step.pieces or (Piece(b"", at.told),):
                    yield piece
        _check_within(offset, end)
        yield line_pieces.ending(log, at, output_ended=extent.output_ended)

    async def locate(self, log: Log, view: View, now: Fixed, lived_ns: tuple[int, int]) -> tuple[int, Fixed]:
        """Where a part of a log begins, and how much of what is there now is before its end: see `seek.locate`.

        Raises:
            JobWorkerError: the log can't be read.
        """
        with self._reading(log.job_id):
            try:
                start, end = await locate(self._segments, log, view, now.log_bytes, lived_ns)
            except OSError as error:
                raise _fault(error) from None
        ended = now.output_ended and end == now.log_bytes
        return start, replace(now, log_bytes=end, output_ended=ended)

    async def _pass_over(self, log: Log, offset: int, end: int) -> int:
        """Where to look next for a source that has written nothing before an offset for a while."""
        try:
            return await pass_over(self._segments, log, offset, end)
        except OSError as error:
            raise _fault(error) from None

    @contextmanager
    def _reading(self, job_id: str) -> Iterator[None]:
        self._readers[job_id] += 1
        try:
            yield
        finally:
            self._readers[job_id] -= 1
            if not self._readers[job_id]:
                del self._readers[job_id]
                self._forget(job_id)

    def _forget(self, job_id: str) -> None:
        self._segments.forget(job_id)
        self._pieces.forget(job_id)
        self._steps.forget(job_id)

    async def _read(self, part: Part, make: Callable[[Segment, Part], T], dropped: Callable[[Part, str], T]) -> T:
        """What is made of a part, as far as it is in one segment, or of the news that it is not there."""
        number = part.offset // part.log.segment_bytes
        within = part.cut((number + 1) * part.log.segment_bytes)
        try:
            return make(await self._segments.get(part.log.job_id, number, part.offset), within)
        except OutputDropped as error:
            # Of a job that has written much for long, most is not there any more.
            return dropped(part.cut(max(within.end, error.goes_on)), error.reason)
        except OSError as error:
            raise _fault(error) from None

    def _piece(self, segment: Segment, part: Part) -> Piece:
        if not part.indexed:
            # Chunks end on a grid, so that followers who started apart come to share them.
            part = part.cut((part.offset // CHUNK_BYTES + 1) * CHUNK_BYTES)
        return self._pieces.get(part, part.offset, lambda: _chunk(segment, part))

    def _step(self, part: Part, at: Standing) -> Awaitable[Step]:
        def make(segment: Segment, part: Part) -> Step:
            return self._steps.get(part, at.told, lambda: line_pieces.step(segment, part, at))

        return self._read(part, make, lambda part, reason: line_pieces.over(part, at, reason))


def _fault(error: OSError) -> HostFault:
    return HostFault("reading a log", errno.errorcode.get(error.errno or 0, "UNKNOWN"), error.strerror or "")


def _check_within(offset: int, end: int) -> None:
    if end < offset:
        raise InvalidField("offset", f"{offset} is beyond the end of the output; there is 0 to {end}", str(end))


def _dropped(part: Part, reason: str) -> Piece:
    return pieces.gap(part.log, part.offset, part.end, reason)


def _chunk(segment: Segment, part: Part) -> Piece:
    log = part.log
    run = Span(part.offset, part.end, log.source or UNKNOWN, 0)
    if part.indexed:
        run = segment.index.run(part.offset, part.end, log.source, timed=log.timed)
    if run.start == run.stop:
        return Piece(b"", run.stop)
    if run.source == LOST:
        return pieces.gap(log, run.start, run.stop, NOT_WRITTEN)
    data = segment.read(run.start, min(run.stop - run.start, CHUNK_BYTES))
    if not data:
        return pieces.gap(log, run.start, segment.missing_until(run.start, run.stop), part.why_missing(segment))
    head = pb.OutputChunk(offset=run.start, source=SOURCES[log.source or UNKNOWN])
    if log.timed:
        head.source = SOURCES.get(run.source, pb.OUTPUT_SOURCE_UNSPECIFIED)
        if run.time_ns:
            head.time.FromNanoseconds(run.time_ns)
    return Piece(pieces.chunk(head, data), run.start + len(data))

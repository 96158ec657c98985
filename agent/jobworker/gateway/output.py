"""A job's output as the messages of a stream: read once, encoded once, sent to any number of followers."""

from __future__ import annotations

import errno
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.errors import HostFault, InvalidField, OutputDropped
from jobworker.gateway.index import UNKNOWN, Span
from jobworker.gateway.seek import Log, View, locate
from jobworker.gateway.segments import Segment, Segments
from jobworker.jobs import Source
from jobworker.wire.output_index import LOST, NOT_WRITTEN

# Larger chunks gain little speed and make a stalled follower hold more.
CHUNK_BYTES = 256 * 1024
_CACHED_PIECES = 64


_SOURCES: dict[int, pb.OutputSource.ValueType] = {
    UNKNOWN: pb.OUTPUT_SOURCE_UNSPECIFIED,
    Source.STDOUT: pb.OUTPUT_SOURCE_STDOUT,
    Source.STDERR: pb.OUTPUT_SOURCE_STDERR,
}


class Extent(Protocol):
    """How far a job's log goes."""

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


@dataclass(frozen=True, slots=True)
class Piece:
    """One message of a stream, encoded; empty where there is nothing to send.

    Attributes:
        stop: the offset to go on at.
    """

    message: bytes
    stop: int


@dataclass(frozen=True, slots=True)
class _Part:
    """What a message is to be made of: some of what is between two absolute offsets.

    Attributes:
        lossy: bytes of this log could not be written; the index tells which.
    """

    log: Log
    offset: int
    end: int
    lossy: bool

    @property
    def indexed(self) -> bool:
        """The index has to be looked at; mostly it need not be."""
        return self.lossy or self.log.timed or self.log.source is not None

    def cut(self, end: int) -> _Part:
        return self if self.end <= end else replace(self, end=end)


class Output:
    """Reads logs for all streams."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._readers: Counter[str] = Counter()
        # Followers of one job are mostly at the same place.
        self._pieces: OrderedDict[_Part, Piece] = OrderedDict()

    async def pieces(self, log: Log, offset: int, extent: Extent) -> AsyncGenerator[Piece, None]:
        """The messages of a stream from an offset on, the last of which is its `OutputEnd`.

        Raises:
            InvalidField: the output ends before the offset.
            JobWorkerError: the log can't be read.
        """
        with self._reading(log.job_id):
            while (end := await extent.beyond(offset)) > offset:
                piece = await self._piece(_Part(log, offset, end, lossy=extent.lost_bytes > 0))
                offset = piece.stop
                yield piece
        if end < offset:
            raise InvalidField(
                "offset", f"{offset} is beyond the end of the output; there is 0 to {end}", str(end)
            )
        ending = pb.OutputEnd(offset=offset, output_ended=extent.output_ended)
        yield Piece(pb.StreamResponse(end=ending).SerializeToString(), offset)

    async def locate(self, log: Log, view: View, now: Fixed) -> tuple[int, Fixed]:
        """Where a part of a log begins, and how much of what is there now is before its end.

        Raises:
            JobWorkerError: the log can't be read.
        """
        with self._reading(log.job_id), _reading_disk():
            start, end = await locate(self._segments, log, view, now.log_bytes)
        ended = now.output_ended and end == now.log_bytes
        return start, replace(now, log_bytes=end, output_ended=ended)

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
        for part in [part for part in self._pieces if part.log.job_id == job_id]:
            del self._pieces[part]

    async def _piece(self, part: _Part) -> Piece:
        number = part.offset // part.log.segment_bytes
        part = part.cut((number + 1) * part.log.segment_bytes)
        try:
            with _reading_disk():
                return self._read(await self._segments.get(part.log.job_id, number), part)
        except OutputDropped as error:
            return _gap(part.offset, part.end, error.reason)

    def _read(self, segment: Segment, part: _Part) -> Piece:
        if not part.indexed:
            # Chunks end on a grid, so that followers who started apart come to share them.
            part = part.cut((part.offset // CHUNK_BYTES + 1) * CHUNK_BYTES)
        piece = self._pieces.get(part)
        if piece is None:
            piece = self._pieces[part] = _chunk(segment, part)
            if len(self._pieces) > _CACHED_PIECES:
                self._pieces.popitem(last=False)
        return piece


@contextmanager
def _reading_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "UNKNOWN")
        raise HostFault("reading a log", name, error.strerror or "") from None


def _chunk(segment: Segment, part: _Part) -> Piece:
    log = part.log
    run = Span(part.offset, part.end, log.source or UNKNOWN, 0)
    if part.indexed:
        run = segment.index.run(part.offset, part.end, log.source, timed=log.timed)
    if run.start == run.stop:
        return Piece(b"", run.stop)
    if run.source == LOST:
        return _gap(run.start, run.stop, NOT_WRITTEN)
    data = segment.read(run.start, min(run.stop - run.start, CHUNK_BYTES))
    if not data:
        # The index may be late to tell, since it is on the same disk.
        reason = NOT_WRITTEN if part.lossy else "the log is shorter than it was"
        return _gap(run.start, run.stop, reason)
    chunk = pb.OutputChunk(offset=run.start, data=data, source=_SOURCES[log.source or UNKNOWN])
    if log.timed:
        chunk.source = _SOURCES.get(run.source, pb.OUTPUT_SOURCE_UNSPECIFIED)
        if run.time_ns:
            chunk.time.FromNanoseconds(run.time_ns)
    return Piece(pb.StreamResponse(chunk=chunk).SerializeToString(), run.start + len(data))


def beginning(offset: int) -> bytes:
    """The message that tells where a stream begins."""
    return pb.StreamResponse(chunk=pb.OutputChunk(offset=offset)).SerializeToString()


def _gap(offset: int, end: int, reason: str) -> Piece:
    gap = pb.OutputGap(offset=offset, length=end - offset, reason=reason)
    return Piece(pb.StreamResponse(gap=gap).SerializeToString(), end)

"""What streams are made of: a part of a log becomes messages, each encoded once for all who follow."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.gateway.index import UNKNOWN
from jobworker.gateway.seek import Log
from jobworker.gateway.segments import Segment
from jobworker.jobs import OutputFormat, Source
from jobworker.wire.output_index import DROPPED, NOT_WRITTEN

_log = structlog.get_logger()

T = TypeVar("T")

_KEPT = 64
# What stands before a field of bytes: its number, and that its length follows.
_CHUNK = bytes((pb.StreamResponse.CHUNK_FIELD_NUMBER << 3 | 2,))
_DATA = bytes((pb.OutputChunk.DATA_FIELD_NUMBER << 3 | 2,))

# Why output is missing that nobody has done anything to.
_EXPECTED = (DROPPED, NOT_WRITTEN)

SOURCES: dict[int, pb.OutputSource.ValueType] = {
    UNKNOWN: pb.OUTPUT_SOURCE_UNSPECIFIED,
    Source.STDOUT: pb.OUTPUT_SOURCE_STDOUT,
    Source.STDERR: pb.OUTPUT_SOURCE_STDERR,
}


@dataclass(frozen=True, slots=True)
class Piece:
    """One message of a stream, encoded; empty where there is nothing to send.

    Attributes:
        stop: the offset to go on at.
    """

    message: bytes
    stop: int


@dataclass(frozen=True, slots=True)
class Part:
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

    def why_missing(self, segment: Segment) -> str:
        """Why a segment's file holds less than the supervisor has told of."""
        # The index may be late to tell, since it is on the same disk.
        return NOT_WRITTEN if self.lossy else segment.why_short

    def cut(self, end: int) -> Part:
        return self if self.end <= end else Part(self.log, self.offset, end, self.lossy)


class Shared(Generic[T]):
    """What was made last of parts of logs: followers of one job are mostly at the same place."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[Part, int], T] = OrderedDict()

    def get(self, part: Part, told: int, make: Callable[[], T]) -> T:
        """What was made of this part for those who were told as much before, or what is made now."""
        made = self._made.get((part, told))
        if made is None:
            made = self._made[part, told] = make()
            if len(self._made) > _KEPT:
                self._made.popitem(last=False)
        return made

    def forget(self, job_id: str) -> None:
        for key in [key for key in self._made if key[0].log.job_id == job_id]:
            del self._made[key]


def chunk(head: pb.OutputChunk, data: bytes) -> bytes:
    """The message of a chunk, which has `head` and this data.

    By protobuf's own rules (https://protobuf.dev/programming-guides/encoding/), with one copy of the data in the
    place of the four that its library makes.
    """
    start = head.SerializeToString() + _DATA + _varint(len(data))
    return b"".join((_CHUNK, _varint(len(start) + len(data)), start, data))


def _varint(number: int) -> bytes:
    digits = bytearray()
    while rest := number >> 7:
        digits.append(number & 0x7F | 0x80)
        number = rest
    digits.append(number)
    return bytes(digits)


def beginning(log: Log, offset: int) -> bytes:
    """The message that tells where a stream begins."""
    resume = 0 if log.format is OutputFormat.BINARY else offset
    return pb.StreamResponse(chunk=pb.OutputChunk(offset=offset, resume_offset=resume)).SerializeToString()


def gap(log: Log, offset: int, end: int, reason: str, lines: bytes = b"") -> Piece:
    """What cannot be served, with the lines that it cuts."""
    if reason not in _EXPECTED:
        _log.warning("output is damaged", job=log.job_id, offset=offset, length=end - offset, reason=reason)
    message = pb.OutputGap(offset=offset, length=end - offset, reason=reason, data=lines)
    return Piece(pb.StreamResponse(gap=message).SerializeToString(), end)


def ending(offset: int, *, output_ended: bool, lines: bytes = b"") -> Piece:
    """The last message, with the lines that have no newline."""
    message = pb.OutputEnd(offset=offset, output_ended=output_ended, data=lines)
    return Piece(pb.StreamResponse(end=message).SerializeToString(), offset)

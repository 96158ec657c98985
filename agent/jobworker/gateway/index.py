"""The index of a segment: who wrote its bytes and when, and which of them the agent could not write."""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

# In the order of the offsets. Little-endian, as the supervisor writes it.
RECORD = struct.Struct("<QIB3xQ")
_BLOCK = 1024

# Sources beside those of jobs: the agent could not write these bytes; the index does not know them.
LOST, UNKNOWN = 0, -1


class Record(NamedTuple):
    """One record; `time_ns` is Unix time, by the host's wall clock."""

    offset: int
    length: int
    source: int
    time_ns: int


class Run(NamedTuple):
    """A range of absolute offsets to serve; lost: there is nothing to read in it."""

    start: int
    stop: int
    lost: bool


_Span = tuple[int, int, int]


class _Kind(enum.Enum):
    WANTED = enum.auto()
    LOST = enum.auto()
    OTHER = enum.auto()


class Index:
    """Reads an index through a descriptor that someone else closes, anew each time: it may be growing."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def run(self, offset: int, end: int, source: int | None) -> Run:
        """The next range between two absolute offsets that a source wrote (None: any), or that was lost.

        It may be empty, and end before `end`, where nothing of this kind was found so far: so that one call
        looks at a bounded part of the index.

        A byte belongs to the last record that begins at or before it, since that record may still grow; except
        that what was lost is exactly as long as its record says.
        """
        records = [record for record in self.block(self.last_before(offset + 1)) if record.offset < end]
        # Behind a full block there are records that have not been looked at.
        limit = max(records[-1].offset, offset + 1) if len(records) == _BLOCK else end
        for kind, spans in groupby(_spans(records, offset, limit), lambda span: _kind(span[2], source)):
            if kind is not _Kind.OTHER:
                found = list(spans)
                return Run(found[0][0], found[-1][1], lost=kind is _Kind.LOST)
        return Run(limit, limit, lost=False)

    def block(self, first: int) -> list[Record]:
        """Records from a number on, up to a fixed count; half a record at the end is none."""
        data = os.pread(self._fd, _BLOCK * RECORD.size, first * RECORD.size)
        whole = len(data) // RECORD.size * RECORD.size
        return [Record(*fields) for fields in RECORD.iter_unpack(data[:whole])]

    def last_before(self, offset: int) -> int:
        """The number of the last record that begins before the offset; 0 where there is none."""
        low, high = 0, os.fstat(self._fd).st_size // RECORD.size
        while high - low > 1:
            middle = (low + high) // 2
            if self._record(middle).offset < offset:
                low = middle
            else:
                high = middle
        return low

    def _record(self, number: int) -> Record:
        return Record(*RECORD.unpack(os.pread(self._fd, RECORD.size, number * RECORD.size)))


def _spans(records: Sequence[Record], offset: int, limit: int) -> Iterator[_Span]:
    """Who wrote what: start, stop, source, one behind the other from an offset to the limit."""
    at = offset
    for bound, source in _bounds(records, limit):
        if min(bound, limit) > at:
            yield at, min(bound, limit), source
            at = min(bound, limit)


def _bounds(records: Sequence[Record], limit: int) -> Iterator[tuple[int, int]]:
    """Where what each source wrote ends; in order, unless the index is broken."""
    for record, following in pairwise((*records, Record(limit, 0, UNKNOWN, 0))):
        yield record.offset, UNKNOWN
        if record.source == LOST:
            yield min(record.offset + record.length, following.offset), LOST
        else:
            yield following.offset, record.source
    yield limit, UNKNOWN


def _kind(source: int, wanted: int | None) -> _Kind:
    if source == LOST:
        return _Kind.LOST
    return _Kind.WANTED if wanted in {None, source} else _Kind.OTHER

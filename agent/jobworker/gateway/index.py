"""The index of a segment: who wrote its bytes and when, and which of them the agent could not write."""

from __future__ import annotations

import enum
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from jobworker.wire.output_index import LOST, RECORD

# Small, for most of the time the first few tell what is wanted.
_BLOCK = 128

# A source beside those of the index, for bytes that it does not know.
UNKNOWN = -1


class Record(NamedTuple):
    """One record; `time_ns` is Unix time, by the host's wall clock."""

    offset: int
    length: int
    source: int
    time_ns: int


class Span(NamedTuple):
    """A range of absolute offsets, who wrote it, or LOST, and when its first byte came; 0: not known."""

    start: int
    stop: int
    source: int
    time_ns: int


class _Kind(enum.Enum):
    WANTED = enum.auto()
    LOST = enum.auto()
    OTHER = enum.auto()


class Index:
    """Reads an index, anew each time, since it may be growing. The descriptor lives as long as the object."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __del__(self) -> None:
        os.close(self._fd)

    def run(self, offset: int, end: int, source: int | None, *, timed: bool = False) -> Span:
        """The next range between two absolute offsets that a source wrote (None: any), or that was lost.

        It may be empty, and end before `end`, where nothing of this kind was found so far: so that one call
        looks at a bounded part of the index. With `timed` it is of one record.

        A byte belongs to the last record that begins at or before it, since that record may still grow; except
        that what was lost is exactly as long as its record says.
        """
        runs, limit = self._look(offset, end, source, timed=timed)
        return next(runs, Span(limit, limit, UNKNOWN, 0))

    def runs(self, offset: int, end: int, source: int | None, *, timed: bool = False) -> Iterator[Span]:
        """All that `run` would find one after the other."""
        while offset < end:
            runs, offset = self._look(offset, end, source, timed=timed)
            yield from runs

    def _look(
        self, offset: int, end: int, source: int | None, *, timed: bool = False
    ) -> tuple[Iterator[Span], int]:
        """The runs in one block of the index, and how far the block goes."""
        block = self._block(self._last_before(offset + 1))
        # A record that could not be written has left zeros.
        records = [record for record in block if record.length]
        limit = end
        if len(block) == _BLOCK and records and records[-1].offset < end:
            # Behind a full block there are records that have not been looked at.
            limit = max(records[-1].offset, offset + 1)
        return _runs(_spans(records, offset, limit), source, timed=timed), limit

    def _block(self, first: int) -> list[Record]:
        """Records from a number on, up to a fixed count; half a record at the end is none."""
        data = os.pread(self._fd, _BLOCK * RECORD.size, first * RECORD.size)
        whole = len(data) // RECORD.size * RECORD.size
        return list(map(Record._make, RECORD.iter_unpack(data[:whole])))

    def begins_ns(self) -> int | None:
        """When the first byte came; None where the index is empty."""
        return self._record(0).time_ns if self._count() else None

    def since(self, time_ns: int) -> int | None:
        """The offset of the first record that is not before a time; None where there is none."""
        number = bisect_left(range(self._count()), time_ns, key=lambda number: self._record(number).time_ns)
        return self._record(number).offset if number < self._count() else None

    def _last_before(self, offset: int) -> int:
        """The number of the last record that begins before the offset; 0 where there is none."""
        after = bisect_left(range(self._count()), offset, key=lambda number: self._record(number).offset)
        return self._written(after - 1)[0] if after else 0

    def _count(self) -> int:
        return os.fstat(self._fd).st_size // RECORD.size

    def _record(self, number: int) -> Record:
        return self._written(number)[1]

    def _written(self, number: int) -> tuple[int, Record]:
        """This record with its number, or where it could not be written, the last one before it."""
        while True:
            record = Record._make(RECORD.unpack(os.pread(self._fd, RECORD.size, number * RECORD.size)))
            if record.length or not number:
                return number, record
            number -= 1


def _runs(spans: Iterator[Span], source: int | None, *, timed: bool) -> Iterator[Span]:
    """Neighbours of one kind as one; what is neither wanted nor lost is left out."""

    def key(span: Span) -> tuple[_Kind, Any]:
        return _kind(span.source, source), span[2:] if timed else None

    for (kind, _), group in groupby(spans, key):
        if kind is not _Kind.OTHER:
            first, *others = group
            yield first._replace(stop=others[-1].stop) if others else first


def _spans(records: Sequence[Record], offset: int, limit: int) -> Iterator[Span]:
    """One behind the other, from an offset to a limit."""
    at = offset
    for bound, source, time_ns in _bounds(records, limit):
        if min(bound, limit) > at:
            yield Span(at, min(bound, limit), source, time_ns)
            at = min(bound, limit)


def _bounds(records: Sequence[Record], limit: int) -> Iterator[tuple[int, int, int]]:
    """Where what each source wrote ends, and when it came; in order, unless the index is broken."""
    for record, following in pairwise((*records, Record(limit, 0, UNKNOWN, 0))):
        yield record.offset, UNKNOWN, 0
        stop = following.offset
        if record.source == LOST:
            stop = min(record.offset + record.length, stop)
        yield stop, record.source, record.time_ns
    yield limit, UNKNOWN, 0


def _kind(source: int, wanted: int | None) -> _Kind:
    if source == LOST:
        return _Kind.LOST
    return _Kind.WANTED if wanted in {None, source} else _Kind.OTHER

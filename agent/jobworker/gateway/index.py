"""The index of a segment: who wrote its bytes and when, and which of them the agent could not write."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby, islice, pairwise
from typing import Any, NamedTuple

from jobworker.wire.output_index import LOST, RECORD, SOURCE_AT

# Small, for most of the time the first few tell what is wanted.
_BLOCK = 128
# Where one source is wanted, so many are taken that it wrote, and so many are passed over that the other one did.
_OWN, _AHEAD = 32, 4096
# Records that could not be written are gone over in steps of so many, and so many for one look.
_WALK, _MAX_WALK = 1024, 256 * 1024
_ZEROS = bytes(_WALK * RECORD.size)

# A source beside those of the index, for bytes that it does not know.
UNKNOWN = -1


class Record(NamedTuple):
    """One record; `time_ns` is Unix time, by the host's wall clock, and `alone` as in `wire/output_index.py`."""

    offset: int
    length: int
    source: int
    alone: int
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
        """All that `run` would find one after the other: so an empty one for a part in which nothing was found."""
        while offset < end:
            runs, offset = self._look(offset, end, source, timed=timed)
            yield next(runs, Span(offset, offset, UNKNOWN, 0))
            yield from runs

    def _look(
        self, offset: int, end: int, source: int | None, *, timed: bool = False
    ) -> tuple[Iterator[Span], int]:
        """The runs in a part of the index, and how far that goes."""
        before, after = self._around(lambda record: record.offset, offset + 1)
        following, is_last = self._telling(after, source)
        records = [record for record in (before, *following) if record and record.length]
        limit = end
        if not is_last and records and records[-1].offset < end:
            limit = max(records[-1].offset, offset + 1)
        return _runs(_spans(records, offset, limit), source, timed=timed), limit

    def _telling(self, first: int, source: int | None) -> tuple[list[Record], bool]:
        """What is known of a source from a record on, and whether there is no record behind that.

        Of records of the other one that are next to each other the first is enough: it tells where what is before
        it ends. So they can be passed over without a look at each.
        """
        if source is None:
            block = self._block(first, _BLOCK)
            return block, len(block) < _BLOCK
        data = self._data(first, _AHEAD)
        sources = data[SOURCE_AT :: RECORD.size]
        found = list(islice(_places(sources.translate(_marks(source))), _OWN))
        last = found[-1] if len(found) == _OWN else len(sources) - 1
        telling = sorted({0, last, *found, *(number + 1 for number in found)})
        records = [RECORD.unpack_from(data, at * RECORD.size) for at in telling if 0 <= at <= last]
        return list(map(Record._make, records)), last == len(sources) - 1 and len(sources) < _AHEAD

    def begins_ns(self) -> int | None:
        """When the first byte came of which that is known; None where the index is empty."""
        first = self._first(lambda record: record.offset, 0)
        return first.time_ns if first else None

    def others_alone(self, start: int, source: int) -> int:
        """For how many segments right before this one, which begins at an offset, another source wrote alone."""
        first = self._first(lambda record: record.offset, 0)
        return first.alone if first and first.offset == start and first.source != source else 0

    def since(self, time_ns: int) -> int | None:
        """The offset of the first record that is not before a time; None where there is none."""
        first = self._first(lambda record: record.time_ns, time_ns)
        return first.offset if first else None

    def _first(self, key: Callable[[Record], int], value: int) -> Record | None:
        return next(iter(self._block(self._around(key, value)[1], 1)), None)

    def _around(self, key: Callable[[Record], int], value: int) -> tuple[Record | None, int]:
        """The last record that is before a value, if any, and the number of the first one that is not."""
        low, high = 0, os.fstat(self._fd).st_size // RECORD.size
        before, walk = None, _MAX_WALK
        while low < high:
            middle = (low + high) // 2
            # What is before `low` is known to be before the value: all steps together walk over each record once.
            number, record = self._last_written(max(low, middle - walk), middle)
            walk -= middle - number
            if record and key(record) >= value:
                high = number
            else:
                before, low = record or before, middle + 1
        return before, high

    def _last_written(self, first: int, last: int) -> tuple[int, Record | None]:
        """The last one of some records that could be written, with its number; None where none could.

        Others have left zeros: a few on a full disk, any number where somebody has cut off the open index.
        """
        stop, count = last + 1, 1
        while stop > first:
            begin = max(first, stop - count)
            data = self._data(begin, stop - begin)
            if not _ZEROS.startswith(data):
                for at in range(len(data) - RECORD.size, -1, -RECORD.size):
                    record = Record._make(RECORD.unpack_from(data, at))
                    if record.length:
                        return begin + at // RECORD.size, record
            stop, count = begin, _WALK
        return first, None

    def _block(self, first: int, count: int) -> list[Record]:
        return list(map(Record._make, RECORD.iter_unpack(self._data(first, count))))

    def _data(self, first: int, count: int) -> bytes:
        """So many records from a number on, or fewer: half a record at the end is none."""
        data = os.pread(self._fd, count * RECORD.size, first * RECORD.size)
        return data[: len(data) // RECORD.size * RECORD.size]


@cache
def _marks(source: int) -> bytes:
    """For `bytes.translate`: 1 in place of this source, and of what was lost."""
    return bytes(one in {LOST, source} for one in range(256))


def _places(marks: bytes) -> Iterator[int]:
    at = marks.find(1)
    while at >= 0:
        yield at
        at = marks.find(1, at + 1)


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
    for record, following in pairwise((*records, Record(limit, 0, UNKNOWN, 0, 0))):
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

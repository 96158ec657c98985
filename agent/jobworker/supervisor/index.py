"""The index of a job's log: which pipe wrote what and when, and what could not be written at all.

One file beside each segment, `job_<id>.idx`, of 24-byte records in the order of their offsets. A record with the
source `LOST` stands for output that was thrown away: the offsets go on behind it, and the log has a hole there.
What can't be written now is kept here until it can, so that no hole is ever taken for output.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from jobworker.wire.output_index import LOST, MAX_ALONE, RECORD, SOURCE_AT

# Output of one pipe is one record as long as it comes within this time, so that a job which writes single
# bytes does not get an index larger than its log.
_SAME_RECORD_NS = 10_000_000
_MAX_RECORD_BYTES = 2**31
_MAX_UNWRITTEN = 256


@dataclass(slots=True)
class Record:
    """What one source wrote in one go; the last one may still grow."""

    offset: int
    length: int
    source: int
    alone: int
    time_ns: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    def pack(self) -> bytes:
        return RECORD.pack(self.offset, self.length, self.source, self.alone, self.time_ns)

    def takes(self, length: int, source: int, now: int) -> bool:
        """True if more of the same belongs to this record: gaps grow for as long as they last."""
        soon = source == LOST or now - self.time_ns < _SAME_RECORD_NS
        return source == self.source and soon and self.length + length < _MAX_RECORD_BYTES


class _Alone:
    """For how many segments in a row one source has written alone, so that who wants the other one need not look.

    Args:
        segment: of which nothing is known so far.
    """

    def __init__(self, segment: int) -> None:
        self._segment, self._source, self._count = segment, LOST, 0

    def note(self, segment: int, source: int) -> int:
        """This source, or LOST, has to do with a segment; before that so many in a row are its own as a whole."""
        if segment != self._segment:
            goes_on = segment == self._segment + 1 and source == self._source != LOST
            self._count = min(self._count + 1, MAX_ALONE) if goes_on else 0
            self._segment, self._source = segment, source
        elif source != self._source:
            self._source = LOST
        return self._count


class Index:
    """Writes the index of one segment after the other.

    Args:
        open_file: opens the live index for writing, making it where there is none.
        segment_bytes: no record goes over the boundary between two segments.
        segment: the number of the segment that the live index is of.
        found: the bytes that it has.
    """

    def __init__(self, open_file: Callable[[], int], segment_bytes: int, segment: int, found: int) -> None:
        self._open_file = open_file
        self._segment_bytes = segment_bytes
        self._segment = segment
        self._fd = -1
        # Bytes of records that are complete and written, or -1 if that is to be found out; the list holds those
        # behind them.
        self._settled = -1
        self._found = found
        self._records: list[Record] = []
        self._behind = False
        # The time of the last record that there ever was.
        self._latest_ns = 0
        self._alone = _Alone(segment)

    @property
    def behind(self) -> bool:
        """Something that was noted could not be written so far."""
        return self._behind

    @property
    def untold(self) -> bool:
        """Something that was noted is in no file: that failed, or it is behind the live index's segment."""
        return self._behind or any(record.offset >= self._end for record in self._records)

    @property
    def size(self) -> int:
        """The bytes of the live index."""
        return self._found if self._settled < 0 else self._settled + len(self._records) * RECORD.size

    def open(self) -> None:
        """Open the file, if it is not.

        Raises:
            OSError: it can't be opened now.
        """
        if self._fd < 0:
            self._fd = self._open_file()
        if self._settled < 0:
            # Half a record may be left of an earlier life; the next one takes its place.
            self._settled = os.fstat(self._fd).st_size // RECORD.size * RECORD.size
            self._go_on_from(ends(self._fd))

    def _go_on_from(self, known: tuple[Record, Record] | None) -> None:
        # Somebody may have written to the file: what is not of this segment tells no time either.
        if known and known[1].length and known[1].offset // self._segment_bytes == self._segment:
            self._latest_ns = max(self._latest_ns, known[1].time_ns)

    def _now(self) -> int:
        """The time, but none before that of a record: times are found by halving, so they must not go back."""
        self._latest_ns = max(self._latest_ns, time.time_ns())
        return self._latest_ns

    def note(self, offset: int, length: int, source: int) -> None:
        """What lies from `offset` on came from this source, now. Never fails: it may be written later."""
        now = self._now()
        segment, within = divmod(offset, self._segment_bytes)
        alone = self._alone.note(segment, source)
        last = self._records[-1] if self._records else None
        if last and within and last.takes(length, source, now):
            last.length += length
        else:
            if not within:
                self._pass_over()
            self._records.append(Record(offset, length, source, 0 if within else alone, now))
        self._behind = True
        # A disk that takes the output and not its index costs source and time of these bytes, not the bytes.
        with contextlib.suppress(OSError):
            self._write()

    def _pass_over(self) -> None:
        """Forget what is behind the live index's segment: gaps that are whole segments get no file.

        What can't be written for long would grow with each of them, and all of it is looked through each time.
        """
        while self._records and self._records[-1].offset >= self._end:
            self._records.pop()

    @property
    def _end(self) -> int:
        """Where the segment of the live index ends."""
        return (self._segment + 1) * self._segment_bytes

    def _write(self) -> None:
        self.open()
        records = [record for record in self._records if record.offset < self._end]
        data = b"".join(record.pack() for record in records)
        if os.pwrite(self._fd, data, self._settled) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._behind = False
        complete = max(0, len(records) - 1)
        self._settled += complete * RECORD.size
        del self._records[:complete]

    def lose(self, start: int, end: int) -> int:
        """Have what is known from one offset to the other, the end of the output, be a gap.

        Returns:
            How many of these bytes were in no gap before.

        Raises:
            OSError: it can't be written.
        """
        self.open()
        if self._behind:
            self._write()
        count = os.fstat(self._fd).st_size // RECORD.size
        first = bisect_left(range(count), start, key=lambda number: _read(self._fd, number).offset)
        records = [_read(self._fd, first - 1)] if first else []
        lost = gaps(os.pread(self._fd, (count - first) * RECORD.size, first * RECORD.size))
        for record in records:
            if record.source == LOST:
                lost += max(0, record.end - start)
            record.length = min(record.length, start - record.offset)
        self._alone.note(self._segment, LOST)
        self._settled = first * RECORD.size
        self._records = [Record(start, end - start, LOST, 0, self._now())]
        data = b"".join(record.pack() for record in (*records, *self._records))
        if os.pwrite(self._fd, data, (first - len(records)) * RECORD.size) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(self._fd, (first + 1) * RECORD.size)
        return end - start - lost

    def catch_up(self) -> None:
        """Write what could not be written before; output may be written only after this.

        Raises:
            OSError: it can't be, and output would make a hole before it look like output.
        """
        if self._behind:
            try:
                self._write()
            except OSError:
                if len(self._records) >= _MAX_UNWRITTEN or any(one.source == LOST for one in self._records):
                    raise

    def close_segment(self) -> None:
        """Write what is left, and close the file, since it gets another name now.

        Raises:
            OSError: it can't be written.
        """
        if self._behind:
            self._write()
        self.close()

    def begin_segment(self, segment: int) -> None:
        """Go on with another one; of those between, which have no file, nothing is kept."""
        self._segment = segment
        start = segment * self._segment_bytes
        self._records = [record for record in self._records if record.offset >= start]
        self._behind = bool(self._records)
        self._settled, self._found = -1, 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def ends(fd: int) -> tuple[Record, Record] | None:
    """The first and the last whole record of an index; None if it has none.

    Raises:
        OSError: it can't be read.
    """
    count = os.fstat(fd).st_size // RECORD.size
    if not count:
        return None
    return _read(fd, 0), _read(fd, count - 1)


def segment_of(known: tuple[Record, Record] | None, segment_bytes: int) -> int | None:
    """The number of the segment that an index is of, by its ends; None where they tell none.

    A first record of zeros tells nothing: the index was emptied while it was written.
    """
    told = next((record for record in known or () if record.length), None)
    return told.offset // segment_bytes if told else None


def _read(fd: int, number: int) -> Record:
    data = os.pread(fd, RECORD.size, number * RECORD.size)
    if len(data) < RECORD.size:
        raise OSError(errno.ENODATA, "somebody has cut the index off")
    return Record(*RECORD.unpack(data))


def gaps(data: bytes) -> int:
    """How many bytes an index, as read from its file, says are lost."""
    # The bytes that tell the source alone: of millions of records few are gaps, and most often none.
    sources = data[SOURCE_AT : len(data) // RECORD.size * RECORD.size : RECORD.size]
    lost, at = 0, sources.find(LOST)
    while at >= 0:
        lost += RECORD.unpack_from(data, at * RECORD.size)[1]
        at = sources.find(LOST, at + 1)
    return lost

"""Where in a log a stream begins and ends: so many lines before the end, or at a time.

Found by few looks at the log and its indexes, or by reading back from the end: a longer log takes no longer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from jobworker.errors import OutputDropped
from jobworker.gateway.segments import Segment, Segments
from jobworker.jobs import OutputFormat, Source
from jobworker.wire.output_index import DROPPED

# A job may write lines without end.
MAX_TAIL_BYTES = 64 * 1024 * 1024
# Between so many bytes, or runs of a source, others have their turn.
_BLOCK_BYTES = 16 * 1024
_RUNS = 256
# For so many looks a log is taken to have grown evenly. Then it is halved, whatever it has done.
_GUESSES = 6
# Beyond so many places in a row at which nothing tells when a segment begins, none is looked for.
_MISSING = 64


@dataclass(frozen=True, slots=True)
class Log:
    """Which log to read, whose output of it (None: all), whether to tell who wrote it when, and in what form."""

    job_id: str
    segment_bytes: int
    source: Source | None
    timed: bool = False
    format: OutputFormat = OutputFormat.BINARY


@dataclass(frozen=True, slots=True)
class View:
    """A part of a log. Times are nanoseconds of Unix time; None is for what was not asked for."""

    offset: int = 0
    tail_lines: int | None = None
    since_ns: int | None = None
    until_ns: int | None = None

    @property
    def relative(self) -> bool:
        """Where it begins has to be found."""
        return self.tail_lines is not None or self.since_ns is not None


async def locate(
    segments: Segments, log: Log, view: View, log_bytes: int, lived_ns: tuple[int, int]
) -> tuple[int, int]:
    """The absolute offsets between which a part of a log is.

    Args:
        segments: of all logs.
        log: which.
        view: which part of it.
        log_bytes: where it ends.
        lived_ns: when its job was created, and until when it can have written, in nanoseconds of Unix time.

    Raises:
        OSError: the disk fails.
        JobWorkerError: the supervisor does not hand out the log.
    """
    seeker = _Seeker(segments, log, log_bytes)
    start, end = view.offset, log_bytes
    if view.until_ns is not None:
        # An offset behind the time is an end that was reached; one behind the log is refused elsewhere.
        end = max(await seeker.at_time(view.until_ns, lived_ns), min(start, log_bytes))
    if view.since_ns is not None:
        start = await seeker.at_time(view.since_ns, lived_ns)
    if view.tail_lines is not None:
        start = max(start, await seeker.tail(view.tail_lines, end))
    return (min(start, end) if view.relative else start), end


async def pass_over(segments: Segments, log: Log, offset: int, log_bytes: int) -> int:
    """An absolute offset up to which, from another one on, the source that is wanted has written nothing.

    Found by halving what is left of the log: the first record of a segment tells for how many before it one source
    wrote alone. It is the same offset where nothing is known.

    Raises:
        OSError: the disk fails.
        JobWorkerError: the supervisor does not hand out the log.
    """
    if log.source is None:
        return offset
    first = offset // log.segment_bytes
    low = await _Seeker(segments, log, log_bytes).wanted_from(first, log.source)
    return max(offset, low * log.segment_bytes)


@dataclass(frozen=True, slots=True)
class _Seeker:
    _segments: Segments
    _log: Log
    _log_bytes: int

    async def at_time(self, time_ns: int, lived_ns: tuple[int, int]) -> int:
        """The offset of the first output that is not before a time; the end of the log where there is none."""
        low, high = 0, -(-self._log_bytes // self._log.segment_bytes)
        # When the segments before `low` and at `high` begin; before that is known, when they may.
        (early, late), guesses = lived_ns, _GUESSES
        while low < high:
            middle = _expected(low, early, high, late, time_ns) if guesses else (low + high) // 2
            guesses = max(0, guesses - 1)
            number, begins_ns = await self._begins(middle, high)
            if begins_ns is None or begins_ns >= time_ns:
                high, late = number, begins_ns or late
            else:
                low, early = number + 1, begins_ns or early
        # From here on segments begin at or after the time; what is sought may be in the one before.
        if not low:
            return 0
        before = await self._segment(low - 1)
        if before is None:
            # Nobody knows when that was written, so it is told as a gap: with all before it, if it was dropped.
            return 0 if await self._was_dropped(low - 1) else (low - 1) * self._log.segment_bytes
        found = before.index.since(time_ns)
        return min(low * self._log.segment_bytes if found is None else found, self._log_bytes)

    async def wanted_from(self, first: int, source: Source) -> int:
        """The last segment up to which, from another one on, the other source is known to have written alone."""
        low, high = first, (self._log_bytes - 1) // self._log.segment_bytes
        # Mostly both write, and the next segment says so; or one hardly ever does, and the last one says that.
        likely = [high, low + 1]
        while low < high:
            number = likely.pop() if likely else (low + high + 1) // 2
            segment = await self._segment(number)
            alone_from = number - (segment.index.others_alone(segment.start, source) if segment else 0)
            if alone_from <= first:
                low = number
            elif number == first + 1:
                break
            else:
                # Somebody else wrote right before that.
                high = alone_from - 1
        return low

    async def _begins(self, number: int, stop: int) -> tuple[int, int | None]:
        """The first segment from a number on of which it is known when it begins, and when that is; 0 if dropped.

        Where there is none, or somebody has made away with too many, the first and None, as if it came after all
        times: if some that are there were passed over, output since a time begins too early, and not too late.
        """
        candidate = number
        for _ in range(_MISSING):
            if candidate >= stop:
                break
            try:
                segment = await self._segments.get(self._log.job_id, candidate)
            except OutputDropped as error:
                goes_on = max(candidate + 1, error.goes_on // self._log.segment_bytes)
                if error.reason == DROPPED:
                    # All that is there came later.
                    return goes_on - 1, 0
                candidate = goes_on
                continue
            begins = segment.index.begins_ns()
            if begins is not None:
                return candidate, begins
            candidate += 1
        return number, None

    async def tail(self, lines: int, end: int) -> int:
        """The offset at which the last lines before an end begin."""
        floor, stop, at_end = max(0, end - MAX_TAIL_BYTES), end, True
        while lines and stop > floor:
            number = (stop - 1) // self._log.segment_bytes
            segment = await self._segment(number)
            start = max(floor, number * self._log.segment_bytes, stop - _BLOCK_BYTES if segment else 0)
            for offset, data in await self._written(segment, start, stop) if segment else ():
                # The newline at the very end ends the last line; each other one is in front of a line.
                length = len(data) - (at_end and data.endswith(b"\n"))
                at_end = at_end and not data
                found = data.count(b"\n", 0, length)
                if found >= lines:
                    return offset + _nth_newline_from_end(data[:length], lines) + 1
                lines -= found
            stop = start
            await asyncio.sleep(0)
        return stop

    async def _written(self, segment: Segment, start: int, stop: int) -> list[tuple[int, bytes]]:
        """What the source wrote between two offsets of a segment, the last piece first."""
        data = segment.read(start, stop - start)
        if self._log.source is None:
            # Ranges that were lost read as zeros, which are no newlines, or as nothing.
            return [(start, data)] if data else []
        written = []
        for count, run in enumerate(segment.index.runs(start, stop, self._log.source), 1):
            if run.source == self._log.source:
                written.append((run.start, data[run.start - start : run.stop - start]))
            if count % _RUNS == 0:
                await asyncio.sleep(0)
        return written[::-1]

    async def _was_dropped(self, number: int) -> bool:
        try:
            await self._segments.get(self._log.job_id, number)
        except OutputDropped as error:
            return error.reason == DROPPED
        return False

    async def _segment(self, number: int) -> Segment | None:
        try:
            return await self._segments.get(self._log.job_id, number)
        except OutputDropped:
            return None


def _expected(low: int, early: int, high: int, late: int, time_ns: int) -> int:
    """The segment in which a time is, if the log has grown evenly."""
    written = (time_ns - early) * (high - low + 1) // max(1, late - early)
    return min(max(low, low - 1 + written), high - 1)


def _nth_newline_from_end(data: bytes, n: int) -> int:
    position = len(data)
    for _ in range(n):
        position = data.rindex(b"\n", 0, position)
    return position

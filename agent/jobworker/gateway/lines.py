"""A job's output as lines: each of one source and whole, except that a very long one is cut.

A line is told where it ends. So one offset says what was told, all lines that end before it, and who goes on there
gets every other line whole, with what stands before the offset. For that a reader begins a little earlier
(`lookback`): what is open at an offset follows from the log alone, since nothing stays open for longer than two
spans of cells. These are ranges of the log, so that all readers cut alike, wherever they began.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, replace
from typing import NamedTuple

# Lines of which no two bytes are further apart stay whole,
CELL = 64 * 1024
# and those of a quarter of a cell at the most if no two bytes are further apart than so many cells. What is taken
# from two pipes in turn is cut anywhere, and up to 128 KiB come before the rest (ROUND_BYTES of the pump).
SPAN_CELLS = 4

# A character of UTF-8 that is not complete has at most so many bytes.
_MAX_UNFINISHED = 3


def lookback(offset: int) -> int:
    """Where to begin to read, so that at this offset it is known what is open, and what has ended right there."""
    span = SPAN_CELLS * CELL
    return max(0, ((offset - 1) // span - 2) * span)


def cell_end(offset: int) -> int:
    """Where the cell ends that the byte at this offset is in."""
    return (offset // CELL + 1) * CELL


class Block(NamedTuple):
    """Lines of one source: several right behind one another, or one whose bytes may be apart, or a piece of one.

    Attributes:
        offset: of the first byte.
        end: who has all lines up to here has these as well.
        source: as the index has it.
        time_ns: when the last byte came, in nanoseconds of Unix time; 0 where that is not known.
        data: a piece has no newline at its end.
        goes_on: it is a piece that was cut off.
    """

    offset: int
    end: int
    source: int
    time_ns: int
    data: bytes
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class _Open:
    """What a source has written behind its last newline.

    Attributes:
        data: without the pieces that were cut off.
        offset: of its first byte.
        end: behind its last one.
        time_ns: when that came.
        run: so many bytes at its end are of this cell, and next to one another.
        older_than_cell: it was open already when this cell began.
        uncut_from: where it began, or was cut last.
        grew_in_span: the source has written something of it in this span.
    """

    data: bytes = b""
    offset: int = 0
    end: int = 0
    time_ns: int = 0
    run: int = 0
    older_than_cell: bool = False
    uncut_from: int = -1
    grew_in_span: bool = False

    def more(self, offset: int, data: bytes, time_ns: int) -> _Open:
        end = offset + len(data)
        run = len(data) + (self.run if offset == self.end else 0)
        begins = self.offset if self.data else offset
        uncut_from = offset if self.uncut_from < 0 else self.uncut_from
        return _Open(
            self.data + data, begins, end, time_ns, run, self.older_than_cell, uncut_from, grew_in_span=True
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a reader stands; the same for all who have come to the same place.

    Attributes:
        told: all lines that end up to this offset.
        read: the log was read up to this offset.
        open: what is held for each source, in their order.
        ended: where the last line ended, whether it was wanted or not.
    """

    told: int
    read: int
    open: tuple[tuple[int, _Open], ...] = ()
    ended: int = 0

    @classmethod
    def at(cls, offset: int) -> Standing:
        """Of a reader who wants the lines that end behind an offset."""
        return cls(offset, lookback(offset))

    @property
    def resume(self) -> int:
        """The offset to resume at."""
        return self.told if any(held.data for _, held in self.open) else max(self.told, self.read)


class Lines:
    """Puts lines together from what sources wrote, in the order of offsets, from a standing on.

    Attributes:
        blocks: that were completed.
        told: see `Standing`.
        read: likewise.
    """

    def __init__(self, standing: Standing) -> None:
        self.blocks: list[Block] = []
        self.told, self.read = standing.told, standing.read
        self._wanted_behind = standing.told
        self._open = dict(standing.open)
        self._ended = standing.ended

    def standing(self) -> Standing:
        return Standing(self.told, self.read, tuple(sorted(self._open.items())), self._ended)

    def feed(self, offset: int, data: bytes, source: int, time_ns: int) -> None:
        """Take in what a source wrote within one cell; what lies before it, from `read` on, is not wanted."""
        held = self._open.get(source, _Open())
        whole = data.rfind(b"\n") + 1
        if whole:
            begun = data.find(b"\n") + 1 if held.data else 0
            if begun:
                line = held.data + data[:begun]
                self._complete(Block(held.offset, offset + begun, source, time_ns, line))
            if begun < whole:
                lines = data[begun:whole]
                self._complete(Block(offset + begun, offset + whole, source, time_ns, lines))
            held = _Open()
        if whole < len(data):
            self._open[source] = held.more(offset + whole, data[whole:], time_ns)
        else:
            self._open.pop(source, None)
        self.reach(offset + len(data))

    def reach(self, offset: int) -> None:
        """Up to here, at most the end of the cell, there is nothing else that is wanted."""
        if offset > self.read:
            self.read = offset
            if offset % CELL == 0:
                for source, held in sorted(self._open.items()):
                    self._enter_cell(source, held)

    def pass_over(self, offset: int) -> None:
        """Up to here, which may be many cells on, there is nothing else that is wanted."""
        while self._open and self.read < offset:
            self.reach(min(offset, cell_end(self.read)))
        self.reach(offset)

    def _enter_cell(self, source: int, held: _Open) -> None:
        """Go on with what is open where a cell ends, or cut it off there.

        Cells and spans are a grid on the log. Where a cell ends, a line is cut that was open where the one before
        ended as well, and whose last run of bytes since is longer than a quarter of a cell. Where a span ends,
        each line is cut that has not been since the one before ended. Both are between two characters of UTF-8
        where that can be seen. What its source has not gone on with for a span is forgotten.
        """
        span = SPAN_CELLS * CELL
        kept, offset, uncut_from, is_span_end = held.data, held.offset, held.uncut_from, self.read % span == 0
        is_long = held.older_than_cell and held.run > CELL // 4
        if is_long or (is_span_end and uncut_from <= self.read - span):
            rest = self._unfinished(held)
            piece, kept = held.data[: len(held.data) - rest], held.data[len(held.data) - rest :]
            if piece:
                self._complete(Block(held.offset, self.read, source, held.time_ns, piece, goes_on=True))
            offset, uncut_from = self.read - rest, self.read
        if held.grew_in_span or not is_span_end:
            self._open[source] = replace(
                held,
                data=kept,
                offset=offset,
                run=0,
                older_than_cell=True,
                uncut_from=uncut_from,
                grew_in_span=held.grew_in_span and not is_span_end,
            )
        else:
            del self._open[source]

    def _unfinished(self, held: _Open) -> int:
        """How many bytes right before the end of the cell begin a character that goes on behind it."""
        if held.end != self.read:
            return 0
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(held.data[-min(held.run, _MAX_UNFINISHED) :])
        return len(decoder.getstate()[0])

    def _complete(self, block: Block) -> None:
        """Keep of a block the lines that end where they are wanted."""
        self._ended = block.end
        if block.end <= self._wanted_behind:
            return
        before = self._wanted_behind - block.offset
        if before > 0 and len(block.data) == block.end - block.offset:
            unwanted = block.data.rfind(b"\n", 0, before) + 1
            block = block._replace(offset=block.offset + unwanted, data=block.data[unwanted:])
        self.blocks.append(block)
        self.told = block.end

    def cut(self, end: int, *, goes_on: bool) -> list[Block]:
        """What is open, in the order in which it began: at this offset a gap begins, or the output has ended.

        Who stands there already was told of it, unless a line has brought him there that ended at the same offset.
        """
        held = sorted((one.offset, source, one) for source, one in self._open.items() if one.data)
        self._open.clear()
        if self.told >= end > self._ended:
            return []
        blocks = [Block(at, self.told, source, one.time_ns, one.data, goes_on) for at, source, one in held]
        # Only who has the last of them has all.
        return [*blocks[:-1], *(last._replace(end=end) for last in blocks[-1:])]

    def skip(self, offset: int) -> None:
        """Go on behind a gap, which may be of many cells; nothing is open there."""
        self.read = offset
        self.told = max(self.told, offset)

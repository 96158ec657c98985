"""Where a job's output goes on this side: a descriptor gets the bytes unchanged, a terminal what is safe."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from jobworker.cli.client_command import complain
from jobworker.cli.client_time import shown
from jobworker.cli.terminal import TerminalFilter
from jobworker.client.output import Chunk, Gap, Item, Lines

# As wide as a time.
_NO_TIME = f"{'-':24}"


class Sink:
    """A descriptor to write to, unbuffered: what a job writes shows at once.

    Args:
        fd: the descriptor.
        tell: of gaps, on standard error.
    """

    def __init__(self, fd: int, *, tell: bool = True) -> None:
        self._fd = fd
        self._filter = TerminalFilter() if os.isatty(fd) else None
        self._gaps = Gaps(complain if tell else None)

    def copy(self, items: Iterable[Item]) -> None:
        """Write the chunks, and tell of gaps.

        Raises:
            JobWorkerError: the stream failed.
            OSError: the descriptor did.
        """
        try:
            for item in items:
                match item:
                    case Chunk(data=data) | Lines(data=data):
                        self._gaps.close()
                        self._write(self._filter.feed(data) if self._filter else data)
                    case Gap():
                        self._gaps.add(item)
        finally:
            self._gaps.close()
            # Ctrl-C, too, must leave the terminal in its own colours.
            if self._filter:
                self._write(self._filter.finish())

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]


class Gaps:
    """Gaps as they are told: one sentence each, in however many pieces it comes."""

    def __init__(self, tell: Callable[[str], None] | None) -> None:
        self._tell = tell
        self._open: Gap | None = None

    def add(self, gap: Gap) -> None:
        before = self._open
        if before and (before.stop, before.reason) == (gap.offset, gap.reason):
            gap = Gap(before.offset, before.length + gap.length, gap.reason)
        else:
            self.close()
        self._open = gap

    def close(self) -> None:
        """What comes next is no part of the gap."""
        gap, self._open = self._open, None
        if gap and self._tell:
            self._tell(f"output bytes {gap.offset} to {gap.stop - 1} are missing: {gap.reason}")


def plain(item: Item) -> dict[str, Any]:
    """An item as plain data, for `--format json`."""
    match item:
        case Chunk(offset, data, source, time_ns):
            text = base64.b64encode(data).decode()
            time = {"time": shown(time_ns)} if time_ns else {}
            return {"type": "chunk", "offset": offset, "source": source and source.name, **time, "data": text}
        case Lines(offset, data, stop):
            return {"type": "lines", "offset": offset, "end": stop, "data": data.decode()}
        case Gap(offset, length, reason):
            return {"type": "gap", "offset": offset, "length": length, "reason": reason}
        case _:
            return {"type": "end", "offset": item.offset, "output_ended": item.output_ended}


def stamped(items: Iterable[Item]) -> Iterator[Item]:
    """The same with the time before each line; a line that several chunks make has the first one's."""
    at_start = True
    for item in items:
        if isinstance(item, Chunk):
            stamp = f"{shown(item.time_ns) if item.time_ns else _NO_TIME} ".encode()
            at_end = item.data.endswith(b"\n")
            body = item.data[: len(item.data) - at_end].replace(b"\n", b"\n" + stamp)
            yield replace(item, data=stamp * at_start + body + b"\n" * at_end)
            at_start = at_end
        else:
            yield item

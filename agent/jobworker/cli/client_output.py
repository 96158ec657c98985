"""Where a job's output goes on this side: a descriptor gets the bytes unchanged, a terminal what is safe."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jobworker.cli import client_json
from jobworker.cli.client_command import complain
from jobworker.cli.terminal import TerminalFilter
from jobworker.client.output import Chunk, End, Gap, Item, Lines


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
                        self._show(data)
                    case Gap():
                        self._gaps.add(item)
        finally:
            self._gaps.close()
            self._finish()

    def lines(self, lines: Iterable[bytes]) -> None:
        """Write lines of JSON, of which an agent that means ill may make something else.

        Raises:
            JobWorkerError: the stream failed.
            OSError: the descriptor did.
        """
        try:
            for line in lines:
                self._show(line)
        finally:
            self._finish()

    def _show(self, data: bytes) -> None:
        write_all(self._fd, self._filter.feed(data) if self._filter else data)

    def _finish(self) -> None:
        # Ctrl-C, too, must leave the terminal in its own colours.
        if self._filter:
            write_all(self._fd, self._filter.finish())


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, however long whoever reads takes.

    Raises:
        OSError: the descriptor did.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            # Others have the same open file, and whether it blocks is up to the last of them to say.
            writable = select.poll()
            writable.register(fd, select.POLLOUT)
            writable.poll()


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


def json_lines(items: Iterable[Item]) -> Iterator[bytes]:
    """What a stream of JSON brings, as whole lines: its own, and an object for each gap and for the end.

    The stream's own lines are as the agent has sent them, whatever that is.
    """
    for item in items:
        match item:
            case Lines(data=data):
                yield data
            case Gap(offset, length, reason):
                yield _line({"type": "gap", "offset": offset, "length": length, "reason": reason})
            case End(offset, output_ended):
                yield _line({"type": "end", "offset": offset, "output_ended": output_ended})


def _line(fields: dict[str, Any]) -> bytes:
    return f"{client_json.line(fields)}\n".encode()

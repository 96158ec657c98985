"""How far long work has got: one line at the foot of a terminal, which goes again; elsewhere nothing."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import click

from jobworker.cli.client_text import size
from jobworker.jobs import MAX_STDIN_BYTES
from jobworker.printable import inline

# Of bytes on their way, more often than anybody reads.
_PAUSE_SECONDS = 0.1
# In less, what buffers on the way have taken would count as much as what the job has.
_RATE_SECONDS = 1.0
_ERASE_LINE = "\r\x1b[K"


class Progress:
    """The line; `progress` makes it."""

    def __init__(self) -> None:
        self._on_a_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._is_shown = False

    def show(self, text: str) -> None:
        """Put this in the place of what was shown last."""
        if self._on_a_terminal:
            # The last column stays free: a full line goes over to the next one, where it would not be erased.
            room = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            click.echo(_ERASE_LINE + inline(text)[: max(0, room)], nl=False, err=True)
            self._is_shown = True

    def clear(self) -> None:
        """Make room for what is to stay."""
        if self._is_shown:
            click.echo(_ERASE_LINE, nl=False, err=True)
            self._is_shown = False

    def of_input(self, pieces: Iterator[bytes], file: IO[bytes], taken: int) -> Iterator[bytes]:
        """The same pieces of a file, while it is shown how many of its bytes were handed on.

        What comes with one message, and what is typed, shows no line.

        Args:
            pieces: of the file.
            file: that is open.
            taken: so many bytes of the file came before.
        """
        whole = _size(file)
        sent, started, shown = 0, time.monotonic(), 0.0
        for data in pieces:
            yield data
            sent += len(data)
            now = time.monotonic()
            if sent >= MAX_STDIN_BYTES and now - shown > _PAUSE_SECONDS:
                shown, seconds = now, now - started
                rate = f", {size(int(sent / seconds))}/s" if seconds > _RATE_SECONDS else ""
                self.show(_of(taken + sent, whole) + rate)


@contextmanager
def progress() -> Iterator[Progress]:
    """A line of progress, which is gone behind the work."""
    line = Progress()
    try:
        yield line
    finally:
        line.clear()


def _size(file: IO[bytes]) -> int | None:
    """How many bytes a file has; None where that is not known before its end."""
    found = os.fstat(file.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _of(done: int, whole: int | None) -> str:
    # A file may grow meanwhile.
    if whole is None or done > whole:
        return f"{size(done)} written"
    return f"{size(done)} of {size(whole)} written ({done * 100 // whole} %)"

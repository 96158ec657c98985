"""How far long work has got: one line at the foot of a terminal, which goes again; elsewhere nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from jobworker.printable import inline

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


@contextmanager
def progress() -> Iterator[Progress]:
    """A line of progress, which is gone behind the work."""
    line = Progress()
    try:
        yield line
    finally:
        line.clear()

"""A terminal that is taken over for a while: whole pictures in place of lines, and keys as they are pressed.

Control sequences are those of ECMA-48 and xterm, which every terminal of today has.
"""

from __future__ import annotations

import os
import signal
import termios
import tty
from collections.abc import Sequence
from typing import Self

# The other screen, no cursor, and no line that goes on in the next one when it is too long.
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_COLUMNS, _HEIGHT = 80, 24
_REVERSE, _PLAIN = "\x1b[7m", "\x1b[m"


class Screen:
    """A context manager, which leaves the terminal as it was.

    Args:
        keys: the descriptor that keys are read from.
        output: the descriptor to draw on.
        coloured: the head stands out.
    """

    def __init__(self, keys: int, output: int, *, coloured: bool) -> None:
        self._keys = keys
        self._output = output
        self._coloured = coloured
        self._before = termios.tcgetattr(keys)

    def __enter__(self) -> Self:
        # Keys one by one and unseen; Ctrl-C and Ctrl-Z stay what they are.
        tty.setcbreak(self._keys)
        self._write(_ENTER)
        return self

    def __exit__(self, *_: object) -> None:
        self._write(_LEAVE)
        # Also what was typed and not read: it was not meant for the shell.
        termios.tcsetattr(self._keys, termios.TCSAFLUSH, self._before)

    def draw(self, top: str, lines: Sequence[str]) -> None:
        """Show a line above, a head, and as many of the other lines as there is room for; all of it printable."""
        columns, height = os.get_terminal_size(self._output)
        # A terminal that nobody has told its size says 0.
        columns, height = columns or _COLUMNS, height or _HEIGHT
        head, *rest = (line[:columns] for line in (top, *lines)[:height])
        if rest and self._coloured:
            rest[0] = f"{_REVERSE}{rest[0].ljust(columns)}{_PLAIN}"
        # Without a newline behind the last, which would scroll.
        self._write(_HOME + "\n".join(f"{line}{_REST_OF_LINE}" for line in (head, *rest)) + _REST_OF_SCREEN)

    def suspend(self) -> None:
        """Stop this process, as Ctrl-Z wants, with the terminal as it was; returns when it goes on."""
        self.__exit__()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.__enter__()

    def _write(self, text: str) -> None:
        rest = memoryview(text.encode())
        while rest:
            rest = rest[os.write(self._output, rest) :]

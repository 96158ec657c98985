"""A terminal of its own for a program, and what the program shows on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from support import processes
from support.signals import interruptible

_DEADLINE = 30
# What stood in the cursor's line is gone behind this.
ERASE_LINE = b"\r\x1b[K"


class Terminal:
    """A program on a pseudo-terminal.

    Attributes:
        shown: all that it has written so far.
    """

    def __init__(self, command: Sequence[Any], columns: int, lines: int, **variables: str) -> None:
        self._terminal, self._its_side = os.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self._its_side)
        self.shown = b""
        environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "", **variables}
        side = self._its_side
        with interruptible():
            self.process = subprocess.Popen(
                command, stdin=side, stdout=side, stderr=side, start_new_session=True, env=environment
            )

    def type(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._its_side, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def picture(self) -> list[str]:
        """The lines of what was drawn last, as far as it has come."""
        return self.shown.rpartition(b"\x1b[H")[2].decode(errors="replace").split("\r\n")

    def wait_for(self, text: str) -> None:
        """Read until the picture that is drawn last has this text."""
        self.wait_until(lambda: any(text in line for line in self.picture()))

    def wait_for_bytes(self, data: bytes) -> None:
        """Read until this has been written."""
        self.wait_until(lambda: data in self.shown)

    def wait_until(self, shown: Callable[[], bool]) -> None:
        """Read until this is so."""
        deadline = time.monotonic() + _DEADLINE
        while not shown():
            self._read(deadline)

    def _read(self, deadline: float) -> None:
        readable, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert readable, self.shown[-2000:]
        self.shown += os.read(self._terminal, 65_536)

    def end(self) -> int:
        """Wait for the program's end, and take what it has still written; the exit code."""
        status = self.process.wait(_DEADLINE)
        while select.select([self._terminal], [], [], 0)[0]:
            self.shown += os.read(self._terminal, 65_536)
        return status

    def lines_left(self) -> list[str]:
        """The lines that stay, without what was erased again."""
        lines = (line.rpartition(ERASE_LINE)[2].decode() for line in self.shown.split(b"\r\n"))
        return [line for line in lines if line]

    def modes(self) -> list[Any]:
        """Of the terminal, as tcgetattr(3) tells them."""
        return termios.tcgetattr(self._its_side)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(_DEADLINE)
        os.close(self._terminal)
        os.close(self._its_side)


def on_a_terminal(command: Sequence[Any], **variables: str) -> tuple[int, bytes]:
    """Run a program to its end on a terminal of its own; its exit code, and all that it shows."""
    ours, its_side = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "", **variables}
    ends = dict.fromkeys(("stdin", "stdout", "stderr"), its_side)
    with processes.running(command, **ends, start_new_session=True, env=environment) as process:
        os.close(its_side)
        shown = b""
        # Linux says EIO when the last process has closed its side.
        with contextlib.suppress(OSError):
            while data := os.read(ours, 65_536):
                shown += data
        os.close(ours)
        return process.wait(_DEADLINE), shown


@contextlib.contextmanager
def terminal(command: Sequence[Any], columns: int = 120, lines: int = 24, **variables: str) -> Iterator[Terminal]:
    running = Terminal(command, columns, lines, **variables)
    try:
        yield running
    finally:
        running.close()

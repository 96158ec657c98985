"""Where a job's output goes on this side: a descriptor gets the bytes unchanged, a terminal what is safe."""

from __future__ import annotations

import os
from collections.abc import Iterable

from jobworker.cli.client_command import complain
from jobworker.cli.terminal import TerminalFilter
from jobworker.client.output import Chunk, Gap, Item


class Sink:
    """A descriptor to write to, unbuffered: what a job writes shows at once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._filter = TerminalFilter() if os.isatty(fd) else None

    def copy(self, items: Iterable[Item]) -> None:
        """Write the chunks, and tell of gaps on standard error.

        Raises:
            JobWorkerError: the stream failed.
            OSError: the descriptor did.
        """
        try:
            for item in items:
                match item:
                    case Chunk(data=data):
                        self._write(self._filter.feed(data) if self._filter else data)
                    case Gap(offset, length, reason):
                        complain(f"{length} bytes of output are missing at offset {offset}: {reason}")
        finally:
            # Ctrl-C, too, must leave the terminal in its own colours.
            if self._filter:
                self._write(self._filter.finish())

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

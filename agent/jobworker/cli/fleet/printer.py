"""What many hosts tell, merged: whole lines, each with its host's name before it, or objects of JSON.

The form `web1: …` is the one of pdsh, whose `dshbak` gathers hosts that say the same.
"""

from __future__ import annotations

import os
import sys
import threading
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from jobworker import codec
from jobworker.cli import client_json
from jobworker.cli.client_output import Gaps, json_lines, write_all
from jobworker.cli.fleet.outcome import Outcome, Status
from jobworker.cli.terminal import TerminalFilter
from jobworker.client.output import Chunk, Gap, Item
from jobworker.errors import ProtocolError
from jobworker.jobs import OutputFormat, Source
from jobworker.printable import inline

# A line that is longer comes in pieces.
_LONGEST = 65_536
_COLOURS = 6
_FIRST_COLOUR = 31


class Printer:
    """The two outputs of this process, for any number of hosts and threads."""

    def __init__(self, *, as_json: bool, environ: Mapping[str, str]) -> None:
        self.as_json = as_json
        self._lock = threading.Lock()
        self._out, self._err = sys.stdout.fileno(), sys.stderr.fileno()
        self._terminals = {fd for fd in (self._out, self._err) if os.isatty(fd)}
        # https://no-color.org: by its presence, whatever its value, but an empty one.
        self._coloured = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"

    def lines(self, host: str, lines: Iterable[bytes], *, error: bool = False) -> None:
        """Write whole lines of a host's, without their ends, all together."""
        fd = self._err if error else self._out
        prefix = self._prefix(host, fd)
        shown = (_safe(line) if fd in self._terminals else line for line in lines)
        self._write(fd, b"".join(prefix + line + b"\n" for line in shown))

    def tell(self, host: str, sentence: str) -> None:
        """Say something about a host on standard error."""
        self._write(self._err, f"worker-client: {inline(host)}: {inline(sentence)}\n".encode())

    def event(self, fields: Mapping[str, Any]) -> None:
        self._write(self._out, f"{client_json.line(dict(fields))}\n".encode())

    def _prefix(self, host: str, fd: int) -> bytes:
        name = f"{inline(host)}:"
        if fd in self._terminals and self._coloured:
            # The same one in every run.
            colour = _FIRST_COLOUR + zlib.crc32(host.encode()) % _COLOURS
            name = f"\x1b[{colour}m{name}\x1b[0m"
        return f"{name} ".encode()

    def _write(self, fd: int, data: bytes) -> None:
        with self._lock:
            write_all(fd, data)


class Lane:
    """One host's way to the printer."""

    def __init__(self, printer: Printer, host: str) -> None:
        self.host = host
        self._printer = printer
        self._lines = {source: _Lines() for source in Source}
        self._gaps = Gaps(self.tell)

    @property
    def output_format(self) -> OutputFormat:
        """What to ask for output in."""
        return OutputFormat.JSON if self._printer.as_json else OutputFormat.BINARY

    def show(self, text: str, kind: str, **fields: Any) -> None:
        """Tell something in whichever form is asked for: as text, or as an object of this type."""
        if self._printer.as_json:
            self._printer.event({"host": self.host, "type": kind, **fields})
        else:
            self._printer.lines(self.host, [line.encode() for line in text.splitlines()])

    def tell(self, sentence: str) -> None:
        self._printer.tell(self.host, sentence)

    def output(self, items: Iterable[Item]) -> None:
        """Tell of a job's output, which comes in `output_format` and with its sources.

        Raises:
            JobWorkerError: the stream failed.
            OSError: this process's output did.
        """
        try:
            if self._printer.as_json:
                for line in (line for lines in json_lines(items) for line in lines.splitlines()):
                    self._printer.event({"host": "", **_object(line)} | {"host": self.host})
            else:
                for item in items:
                    self._text(item)
        finally:
            self._gaps.close()
            for source, lines in self._lines.items():
                self._put(source, lines.finish())

    def result(self, outcome: Outcome) -> None:
        """Tell how it went, where that does not go without saying."""
        if self._printer.as_json:
            self._printer.event(outcome.plain())
        elif outcome.status in (Status.FAILED, Status.UNREACHABLE):
            self.tell(outcome.detail or outcome.reason)

    def _text(self, item: Item) -> None:
        match item:
            case Chunk(data=data, source=source):
                self._gaps.close()
                source = source or Source.STDOUT
                self._put(source, self._lines[source].feed(data))
            case Gap():
                self._gaps.add(item)

    def _put(self, source: Source, lines: list[bytes]) -> None:
        if lines:
            self._printer.lines(self.host, lines, error=source is Source.STDERR)


def _object(line: bytes) -> dict[str, Any]:
    """What an agent has sent as one object of JSON.

    Raises:
        ProtocolError: it is something else.
    """
    told = codec.parse(line)
    if not isinstance(told, dict):
        raise ProtocolError("the agent has sent a line of JSON that is no object")
    return told


class _Lines:
    """Bytes on their way to whole lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole by now, without their ends."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines + (self.finish() if len(self._rest) >= _LONGEST else [])

    def finish(self) -> list[bytes]:
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


def _safe(line: bytes) -> bytes:
    """A line for a terminal: it cannot go back over the name before it, and leaves no colour behind."""
    shown = TerminalFilter()
    return shown.feed(line.removesuffix(b"\r").replace(b"\r", rb"\r")) + shown.finish()

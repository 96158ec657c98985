"""The root side's log: one JSON object a line on standard error, in the schema that the gateway's log has."""

from __future__ import annotations

import json
import os
import time

from jobworker.wire import service_manager
from jobworker.wire.stderr import StandardError

_LEVELS = ("debug", "info", "warning", "error")


class Log:
    """Writes what is at or above a level; never blocks a job for it and never fails.

    A line that finds no room is lost, and the next one that does tells how many were (`log_lines_lost`).

    Attributes:
        level: the lowest that is written.
    """

    def __init__(self, level: str) -> None:
        self.level = level
        self._lowest = _LEVELS.index(level)
        self._to_journal = service_manager.reads_priorities()
        self._to_person = os.isatty(2)
        self._stderr = StandardError()
        self._lost = 0

    def info(self, event: str, **fields: object) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._write("error", event, fields)

    def always(self, event: str, **fields: object) -> None:
        """Write whatever the level is."""
        self._put("info", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        if _LEVELS.index(level) >= self._lowest:
            self._put(level, event, fields)

    def _put(self, level: str, event: str, fields: dict[str, object]) -> None:
        if self._lost:
            fields = {**fields, "log_lines_lost": self._lost}
        now = time.time()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1_000_000):06d}Z"
        if self._to_person:
            # Values as JSON, so that what others have named takes over no terminal.
            told = " ".join(f"{name}={json.dumps(value)}" for name, value in fields.items())
            line = f"{stamp} [{level:<9}] {event:<30} {told}".rstrip()
        else:
            line = json.dumps(
                {"timestamp": stamp, "level": level, "logger": "supervisor", "event": event, **fields}
            )
        if self._to_journal:
            line = f"<{service_manager.PRIORITIES[level]}>{line}"
        # The jobs matter more than who does not read it.
        self._lost = 0 if self._stderr.write(f"{line}\n".encode()) else self._lost + 1

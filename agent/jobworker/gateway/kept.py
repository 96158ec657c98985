"""What files hold, kept in memory and read anew when they have changed.

Whoever needs it asks each time, which costs a stat for each file: that sees any kind of replacement, and works
where no notification comes (network file systems, links that are turned).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

from jobworker import file_stamp
from jobworker.errors import PkiProblem
from jobworker.file_stamp import Stamp

_log = structlog.get_logger()

# What could not be used may be usable without looking different: the clock has gone on, say.
_TRY_AGAIN = 5.0

T = TypeVar("T")


class Kept(Generic[T]):
    """The value that was read last and was good; several threads may ask.

    Args:
        what: it is, for the log.
        paths: of the files.
        read: makes the value, given the one in use; raises PkiProblem for files that are not to be used.

    Attributes:
        problem: why the files as they are now are not in use; empty if they are.
    """

    def __init__(self, what: str, paths: tuple[str, ...], read: Callable[[T | None], T]) -> None:
        self._what = what
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._again_at = float("inf")
        self.problem = ""
        # Before they are read: what changes meanwhile is seen the next time.
        self._seen: tuple[Stamp, ...] | None = self._stamps()
        self._value = read(None)

    def get(self) -> T:
        """The value, after a look at the files."""
        if (seen := self._stamps()) != self._seen or time.monotonic() >= self._again_at:
            with self._lock:
                if seen != self._seen or time.monotonic() >= self._again_at:
                    self._seen = seen
                    self._read_anew()
        return self._value

    def again(self) -> None:
        """Read the files even if they look as before."""
        self._seen = None
        self.get()

    def _read_anew(self) -> None:
        try:
            self._value = self._read(self._value)
        except Exception as error:  # noqa: BLE001 - whatever a parser throws at what others have written
            # Half of a pair or of a file, maybe: the rest of it leads here again.
            problem = str(error) if isinstance(error, PkiProblem) else f"{type(error).__name__}: {error}"
            if problem != self.problem:
                _log.warning(f"{self._what}: the files have changed and cannot be used", problem=problem)
            self.problem, self._again_at = problem, time.monotonic() + _TRY_AGAIN
        else:
            self.problem, self._again_at = "", float("inf")
            _log.info(f"{self._what}: read anew")

    def _stamps(self) -> tuple[Stamp, ...]:
        return tuple(map(file_stamp.of, self._paths))

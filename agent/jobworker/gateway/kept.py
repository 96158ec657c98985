"""What files hold, kept in memory and read anew when they have changed.

Whoever needs it asks each time, which costs a stat for each file: that sees any kind of replacement, and works
where no notification comes (network file systems, links that are turned).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

from jobworker.errors import PkiProblem

_log = structlog.get_logger()

T = TypeVar("T")
Stamp = tuple[int, int, int] | None


class Kept(Generic[T]):
    """The value that was read last and was good; several threads may ask.

    Args:
        what: it is, for the log.
        paths: of the files.
        read: makes the value; raises PkiProblem for files that are not to be used.

    Attributes:
        problem: why the files as they are now are not in use; empty if they are.
    """

    def __init__(self, what: str, paths: tuple[str, ...], read: Callable[[], T]) -> None:
        self._what = what
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self.problem = ""
        # Before they are read: what changes meanwhile is seen the next time.
        self._seen: tuple[Stamp, ...] | None = self._stamps()
        self._value = read()

    def get(self) -> T:
        """The value, after a look at the files."""
        if (seen := self._stamps()) != self._seen:
            with self._lock:
                if seen != self._seen:
                    self._seen = seen
                    self._read_anew()
        return self._value

    def again(self) -> None:
        """Read the files even if they look as before."""
        self._seen = None
        self.get()

    def _read_anew(self) -> None:
        try:
            self._value = self._read()
        except PkiProblem as error:
            # Half of a pair or of a file, maybe: the rest of it leads here again.
            self.problem = str(error)
            _log.warning(f"{self._what}: the files have changed and cannot be used", problem=self.problem)
        else:
            self.problem = ""
            _log.info(f"{self._what}: read anew")

    def _stamps(self) -> tuple[Stamp, ...]:
        return tuple(map(_stamp, self._paths))


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size

"""The files of a job's log: closed segments, plain or compressed, each with its index, and the open one.

job_ID.log  job_ID.idx          the open segment
job_ID.log.N  job_ID.idx.N      a closed one
job_ID.log.N.gz                 compressed; where the plain one is there as well, that is the truth
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from jobworker.kernel import beneath
from jobworker.supervisor import index
from jobworker.wire.compressed_segment import SUFFIX

KINDS = ("idx", "log")


@dataclass(slots=True)
class Closed:
    """The bytes that a closed segment has on the disk: of output, None where no file is, and of its index."""

    log: int | None = None
    index: int = 0

    @property
    def stored(self) -> int:
        return (self.log or 0) + self.index


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a log has.

    Attributes:
        closed: the numbers of its closed segments, the oldest first.
        open: that of the open one; None where nothing tells.
        size: the absolute offset behind its last byte.
        lost: how many of the bytes before that are gaps.
    """

    closed: tuple[int, ...]
    open: int | None
    size: int
    lost: int

    def has(self, segment: int) -> bool:
        return segment == self.open or segment in self.closed

    def after(self, segment: int) -> int | None:
        """The next segment that it has; None if there is none."""
        numbers = self.closed if self.open is None else (*self.closed, self.open)
        return next((number for number in numbers if number > segment), None)


def closed(directory_fd: int, name: str) -> dict[int, Closed]:
    """The closed segments of a log, by number, the oldest first."""
    found: dict[int, Closed] = {}
    for kind, number, _, size in _entries(directory_fd, name):
        segment = found.setdefault(number, Closed())
        if kind == "log":
            segment.log = (segment.log or 0) + size
        else:
            segment.index += size
    return dict(sorted(found.items()))


def plain(directory_fd: int, name: str) -> list[int]:
    """The numbers of closed segments that are not compressed."""
    return [number for kind, number, suffix, _ in _entries(directory_fd, name) if kind == "log" and not suffix]


def stored(directory_fd: int) -> int:
    """The bytes of all files of a log, the open segment included."""
    with os.scandir(directory_fd) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)


def _entries(directory_fd: int, name: str) -> Iterator[tuple[str, int, str, int]]:
    """Kind, number, suffix and size of each file of a closed segment."""
    with os.scandir(directory_fd) as entries:
        for entry in entries:
            kind, _, rest = entry.name.removeprefix(f"{name}.").partition(".")
            number, _, suffix = rest.partition(".")
            if kind in KINDS and number.isdecimal() and suffix in ("", SUFFIX[1:]):
                with contextlib.suppress(FileNotFoundError):
                    yield kind, int(number), suffix, entry.stat(follow_symlinks=False).st_size


def live_status(directory_fd: int, name: str, kind: str) -> os.stat_result | None:
    """What stands where a file of the open segment is to be, whatever it is; None if there is nothing."""
    try:
        return os.stat(f"{name}.{kind}", dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def live_bytes(directory_fd: int, name: str, kind: str) -> int:
    """The bytes that a file of the open segment has; 0 if there is none."""
    status = live_status(directory_fd, name, kind)
    return status.st_size if status else 0


def live_ends(directory_fd: int, name: str) -> tuple[index.Record, index.Record] | None:
    """The first and the last record of the open segment's index; None if it tells nothing."""
    with contextlib.suppress(OSError):
        fd = beneath.open_regular(directory_fd, f"{name}.idx", os.O_RDONLY)
        try:
            return index.ends(fd)
        finally:
            os.close(fd)
    return None


def close(directory_fd: int, name: str, kind: str, number: int) -> None:
    """Give a file of the open segment, if there is one, the name that it has in a closed one.

    Raises:
        OSError: it can't be renamed.
    """
    live = f"{name}.{kind}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(live, f"{live}.{number}", src_dir_fd=directory_fd, dst_dir_fd=directory_fd)


def clear(directory_fd: int, name: str, kind: str) -> None:
    """Remove what somebody has put where a file of the open segment is to be, if he has.

    Raises:
        OSError: it can't be; a directory that is not empty is left alone.
    """
    live = f"{name}.{kind}"
    with contextlib.suppress(FileNotFoundError):
        try:
            os.unlink(live, dir_fd=directory_fd)
        except IsADirectoryError:
            os.rmdir(live, dir_fd=directory_fd)


def drop(directory_fd: int, name: str, number: int) -> None:
    """Remove a closed segment.

    Raises:
        OSError: it can't be, or not all of it.
    """
    # The plain one before the compressed one: who compresses it looks at that last.
    for file in (f"idx.{number}", f"log.{number}", f"log.{number}{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{name}.{file}", dir_fd=directory_fd)

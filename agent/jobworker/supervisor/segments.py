"""The files of a job's log: closed segments, plain or compressed, each with its index, and the open one.

job_ID.log  job_ID.idx          the open segment
job_ID.log.N  job_ID.idx.N      a closed one
job_ID.log.N.gz                 compressed; where the plain one is there as well, that is the truth
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from jobworker.errors import OutputDropped
from jobworker.jobs import JobRecord
from jobworker.kernel import beneath
from jobworker.supervisor import index
from jobworker.wire.compressed_segment import SUFFIX
from jobworker.wire.output_index import DROPPED, NOT_WRITTEN

_NO_INDEX = "its index is gone"
KINDS = ("idx", "log")


@dataclass(slots=True)
class Closed:
    """The bytes that a closed segment has on the disk: of output, None where no file is, and of its index."""

    log: int | None = None
    index: int = 0

    @property
    def stored(self) -> int:
        return (self.log or 0) + self.index


class Opened(NamedTuple):
    """A segment's descriptors, for the caller to close, and whether its file is compressed."""

    log_fd: int
    index_fd: int
    compressed: bool


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


def live_bytes(directory_fd: int, name: str, kind: str) -> int:
    """The bytes that a file of the open segment has; 0 if there is none."""
    try:
        return os.stat(f"{name}.{kind}", dir_fd=directory_fd, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


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


def drop(directory_fd: int, name: str, number: int) -> None:
    """Remove a closed segment.

    Raises:
        OSError: it can't be, or not all of it.
    """
    # The plain one before the compressed one: who compresses it looks at that last.
    for file in (f"idx.{number}", f"log.{number}", f"log.{number}{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{name}.{file}", dir_fd=directory_fd)


def open_segment(directory_fd: int, record: JobRecord, segment: int) -> Opened:
    """Read-only descriptors of a segment of a job's log and of its index.

    Raises:
        OutputDropped: there is no such segment, or what is there is not a file of the agent's.
    """
    name = f"job_{record.job_id}"
    fds: list[int] = []
    try:
        log, suffix = _open_log(directory_fd, name, segment)
        fds.append(log)
        # It is renamed after the log, and that may have been cut off; it is never that of another segment.
        names = (f"{name}.idx.{segment}", f"{name}.idx") if suffix is not None else (f"{name}.idx",)
        fds.append(_open_index(directory_fd, names))
        _check_segment(fds[1], segment, record.segment_bytes)
    except OSError as error:
        for fd in fds:
            os.close(fd)
        reason = _why_missing(directory_fd, record, segment, error)
        raise OutputDropped(record.job_id, segment * record.segment_bytes, reason) from None
    return Opened(fds[0], fds[1], suffix == SUFFIX)


def _open_log(directory_fd: int, name: str, segment: int) -> tuple[int, str | None]:
    """The log of a segment, and what is behind its number; None if it is the open one."""
    for suffix in ("", SUFFIX):
        with contextlib.suppress(FileNotFoundError):
            return beneath.open_regular(directory_fd, f"{name}.log.{segment}{suffix}", os.O_RDONLY), suffix
    return beneath.open_regular(directory_fd, f"{name}.log", os.O_RDONLY), None


def _open_index(directory_fd: int, names: tuple[str, ...]) -> int:
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            return beneath.open_regular(directory_fd, name, os.O_RDONLY)
    raise OSError(errno.ENODATA, _NO_INDEX)


def _check_segment(index_fd: int, segment: int, segment_bytes: int) -> None:
    # The live files may be those of a later segment, if this one was lost as a whole and has none.
    known = index.ends(index_fd)
    # A first record that could not be written is zeros, and tells nothing.
    if known and known[0].length and known[0].offset // segment_bytes != segment:
        raise OSError(errno.ENOENT, "there is nothing of it")


def _why_missing(directory_fd: int, record: JobRecord, segment: int, error: OSError) -> str:
    if error.errno != errno.ENOENT:
        return error.strerror or "unreadable"
    name = f"job_{record.job_id}"
    kept = [number for number, files in closed(directory_fd, name).items() if files.log is not None]
    if segment in kept:
        return _NO_INDEX
    if not kept and not record.lost_bytes:
        # The open segment's number, if the index tells.
        known = live_ends(directory_fd, name)
        kept = [known[0].offset // record.segment_bytes if known else 0]
    return DROPPED if kept and segment < kept[0] else NOT_WRITTEN

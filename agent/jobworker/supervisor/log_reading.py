"""Handing out the segments of a job's log to who reads it, and saying why one is not there.

The names of the open segment's files have no number. So it has to be known that they are those of the segment that
is asked for, or their bytes would stand for those of one that is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import NamedTuple

from jobworker.errors import OutputDropped
from jobworker.jobs import JobRecord
from jobworker.kernel import beneath
from jobworker.supervisor import index, segments
from jobworker.supervisor.segments import Holdings
from jobworker.wire.compressed_segment import SUFFIX
from jobworker.wire.output_index import DROPPED, NOT_WRITTEN, REMOVED

_NO_INDEX = "its index is gone"


class Opened(NamedTuple):
    """A segment's descriptors, for the caller to close.

    Attributes:
        start: the absolute offset of its first byte.
        length: of its output, if its file is compressed; 0 if not.
    """

    log_fd: int
    index_fd: int
    start: int
    length: int


def open_segment(directory_fd: int, record: JobRecord, segment: int, holdings: Holdings | None = None) -> Opened:
    """Read-only descriptors of a segment of a job's log and of its index.

    Args:
        directory_fd: of the log's files.
        record: the job's.
        segment: its number.
        holdings: of a job that runs, as it knows them; those of another one are looked for where that is needed.

    Raises:
        OutputDropped: there is no such segment, or what is there is not a file of the agent's.
    """
    try:
        if holdings and not holdings.has(segment):
            raise FileNotFoundError(errno.ENOENT, "there is nothing of it")
        return _open(directory_fd, record, segment, holdings)
    except OSError as error:
        known = holdings or _holdings(directory_fd, record)
        start, end = (number * record.segment_bytes for number in (segment, segment + 1))
        goes_on = end if known.has(segment) else _goes_on(known, record, segment)
        reason = _why_missing(known, segment, error)
        raise OutputDropped(record.job_id, start, reason, goes_on) from None


def _goes_on(holdings: Holdings, record: JobRecord, segment: int) -> int:
    """Where there may be output again behind a segment that a log has not."""
    following = holdings.after(segment)
    return holdings.size if following is None else following * record.segment_bytes


def _open(directory_fd: int, record: JobRecord, segment: int, holdings: Holdings | None) -> Opened:
    name = f"job_{record.job_id}"
    with contextlib.ExitStack() as undo:
        log_fd, suffix = _open_log(directory_fd, name, segment)
        undo.callback(os.close, log_fd)
        index_fd, is_live = _open_index(directory_fd, name, None if suffix is None else segment)
        undo.callback(os.close, index_fd)
        told = index.segment_of(index.ends(index_fd), record.segment_bytes)
        if told is None and is_live:
            # It is empty or of zeros: nobody came to note anything, or somebody has emptied it.
            told = (holdings or _holdings(directory_fd, record)).open
        if told != segment and (is_live or told is not None):
            raise OSError(errno.ENOENT if suffix is None else errno.ENODATA, _NO_INDEX)
        undo.pop_all()
    size = record.segment_bytes
    return Opened(log_fd, index_fd, segment * size, size if suffix == SUFFIX else 0)


def _open_log(directory_fd: int, name: str, segment: int) -> tuple[int, str | None]:
    """The log of a segment, and what is behind its number; None if it is the open one."""
    for suffix in ("", SUFFIX):
        with contextlib.suppress(FileNotFoundError):
            return beneath.open_regular(directory_fd, f"{name}.log.{segment}{suffix}", os.O_RDONLY), suffix
    return beneath.open_regular(directory_fd, f"{name}.log", os.O_RDONLY), None


def _open_index(directory_fd: int, name: str, closed: int | None) -> tuple[int, bool]:
    """The index of a closed segment, or of the open one, and whether it is the live one."""
    with contextlib.suppress(FileNotFoundError):
        if closed is not None:
            return beneath.open_regular(directory_fd, f"{name}.idx.{closed}", os.O_RDONLY), False
    with contextlib.suppress(FileNotFoundError):
        # It is renamed after the log, and that may have been cut off.
        return beneath.open_regular(directory_fd, f"{name}.idx", os.O_RDONLY), True
    raise OSError(errno.ENODATA, _NO_INDEX)


def _holdings(directory_fd: int, record: JobRecord) -> Holdings:
    """What there is of the log of a job that has ended."""
    name = f"job_{record.job_id}"
    closed = tuple(segments.closed(directory_fd, name))
    number = index.segment_of(segments.live_ends(directory_fd, name), record.segment_bytes)
    if number is None:
        number = _open_number(closed, record)
    return Holdings(closed, number, record.log_bytes, record.lost_bytes)


def _open_number(closed: tuple[int, ...], record: JobRecord) -> int | None:
    """The number of the open segment, whose index tells none: the last one's, if that is not lost as a whole."""
    last = max(0, record.log_bytes - 1) // record.segment_bytes
    is_sure = not record.lost_bytes or last == max(closed, default=-1) + 1
    return last if is_sure else None


def _why_missing(holdings: Holdings, segment: int, error: OSError) -> str:
    if error.errno != errno.ENOENT:
        return error.strerror or "unreadable"
    if holdings.has(segment):
        # What is dropped loses its index first.
        return REMOVED
    first = holdings.closed[0] if holdings.closed else None if holdings.lost else holdings.open
    if first is not None and segment < first:
        return DROPPED
    return NOT_WRITTEN if holdings.lost else REMOVED

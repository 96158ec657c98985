"""A job's output: pipes in, segments of the log out.

The bytes of both pipes are spliced into one log, in the order in which they are seen. One absolute offset runs
through the job's life; segment n holds the offsets from n times the segment size, and is closed at exactly
that size. The open segment is `job_<id>.log`, closed ones have their number behind it. Beside each segment
an index tells which pipe wrote what and when: `job_<id>.idx`.

Splice moves the bytes inside the kernel, so that a death of this process between two system calls loses none:
they are in the pipe or in the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import struct
import time
from dataclasses import dataclass

from jobworker.errors import OutputDropped
from jobworker.jobs import JobRecord, Source
from jobworker.kernel import syscalls

# Fair between jobs: with more a round, a quiet job's bytes wait for the flood of another.
ROUND_BYTES = 64 * 1024
# When nothing else is ready there is nobody to be fair to.
LONE_BYTES = 1024 * 1024

# Absolute offset, length, source, time in nanoseconds of Unix time.
INDEX_RECORD = struct.Struct("<QIB3xQ")
# Output of one pipe is one record as long as it comes within this time, so that a job which writes single
# bytes does not get an index larger than its log.
_SAME_RECORD_NS = 10_000_000
_MAX_RECORD_BYTES = 2**31

_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
_SPLICE_F_NONBLOCK = 2


@dataclass(slots=True)
class _Record:
    """The last record of the index, which may still grow."""

    offset: int
    length: int
    source: int
    time_ns: int

    def pack(self) -> bytes:
        return INDEX_RECORD.pack(self.offset, self.length, self.source, self.time_ns)


class OutputLog:
    """The log of one job; owns the directory's descriptor and those of the open segment.

    Attributes:
        size: the absolute offset behind the last byte.
        lost: bytes that could not be written and were thrown away, since no job may hang for want of disk.
    """

    def __init__(self, directory_fd: int, job_id: str, segment_bytes: int) -> None:
        self._directory = directory_fd
        self._name = f"job_{job_id}"
        self._segment_bytes = segment_bytes
        self._log = self._index = -1
        self._index_size = 0
        self._last: _Record | None = None
        self.lost = 0
        try:
            self._segment = self._count_closed()
            self._open_segment()
        except OSError:
            self.close()
            raise
        self.size = self._segment * segment_bytes + os.fstat(self._log).st_size

    def _count_closed(self) -> int:
        prefix = f"{self._name}.log."
        with os.scandir(self._directory) as entries:
            numbers = [int(e.name[len(prefix) :]) for e in entries if e.name.startswith(prefix)]
        return max(numbers, default=-1) + 1

    def _open_segment(self) -> None:
        self._index = self._open("idx")
        self._log = self._open("log")
        self._last = None
        # Half a record may be left of an earlier life; the next one takes its place.
        self._index_size = os.fstat(self._index).st_size // INDEX_RECORD.size * INDEX_RECORD.size

    def _open(self, kind: str) -> int:
        return _open_regular(self._directory, f"{self._name}.{kind}", os.O_WRONLY | os.O_CREAT)

    def pump(self, pipe: int, source: Source, limit: int = ROUND_BYTES) -> bool:
        """Move up to `limit` bytes from a pipe to the log; False when the pipe has no writer left.

        Raises:
            BlockingIOError: the pipe is empty.
        """
        if self.size == self._end_of_segment() and not _has_data(pipe):
            # A segment is closed when its successor has something to hold, not before.
            return False
        try:
            room = self._make_room()
            at = self._segment_bytes - room
            count = min(limit, room)
            moved = os.splice(pipe, self._log, count, offset_dst=at, flags=_SPLICE_F_NONBLOCK)
        except BlockingIOError:
            raise
        except OSError:
            return self._throw_away(pipe)
        if moved:
            self._note(moved, source)
        return moved > 0

    def _end_of_segment(self) -> int:
        return (self._segment + 1) * self._segment_bytes

    def _make_room(self) -> int:
        """Rotate if the open segment is full; how much fits into it then.

        May fail at any step and be called again: the log's own rename is what makes a segment closed.
        """
        room = self._end_of_segment() - self.size
        if room == 0:
            self._close_segment()
            with contextlib.suppress(FileNotFoundError):
                self._rename("idx")
            self._rename("log")
            self._segment += 1
            room = self._segment_bytes
        if self._log < 0:
            self._open_segment()
        return room

    def _rename(self, kind: str) -> None:
        live = f"{self._name}.{kind}"
        os.rename(live, f"{live}.{self._segment}", src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def _close_segment(self) -> None:
        for fd in (self._log, self._index):
            if fd >= 0:
                os.close(fd)
        self._log = self._index = -1

    def _throw_away(self, pipe: int) -> bool:
        data = os.read(pipe, ROUND_BYTES)
        self.lost += len(data)
        return bool(data)

    def _note(self, length: int, source: Source) -> None:
        now, last = time.time_ns(), self._last
        if last and last.source == source and self._can_grow(last, length, now):
            last.length += length
        else:
            last = self._last = _Record(self.size, length, source, now)
            self._index_size += INDEX_RECORD.size
        self.size += length
        # An index that can't be written costs the source and the time of these bytes, not the bytes.
        with contextlib.suppress(OSError):
            os.pwrite(self._index, last.pack(), self._index_size - INDEX_RECORD.size)

    @staticmethod
    def _can_grow(last: _Record, length: int, now: int) -> bool:
        return 0 <= now - last.time_ns < _SAME_RECORD_NS and last.length + length < _MAX_RECORD_BYTES

    def close(self) -> None:
        self._close_segment()
        os.close(self._directory)


def _has_data(pipe: int) -> bool:
    """True if the pipe holds bytes, False if it is empty for good.

    Raises:
        BlockingIOError: it is empty, but has a writer.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    events = sum(mask for _, mask in poll.poll(0))
    if not events:
        raise BlockingIOError
    return bool(events & select.POLLIN)


def open_segment(directory_fd: int, record: JobRecord, segment: int) -> tuple[int, int]:
    """Read-only descriptors of a segment of a job's log and of its index; the caller closes them.

    Raises:
        OutputDropped: there is no such segment, or what is there is not a file of the agent's.
    """
    name = f"job_{record.job_id}"
    opened: list[int] = []
    try:
        opened += (_open_to_read(directory_fd, f"{name}.{kind}", segment) for kind in ("log", "idx"))
    except OSError as error:
        for fd in opened:
            os.close(fd)
        reason = error.strerror or "unreadable"
        raise OutputDropped(record.job_id, segment * record.segment_bytes, reason) from None
    return opened[0], opened[1]


def _open_to_read(directory_fd: int, name: str, segment: int) -> int:
    try:
        return _open_regular(directory_fd, f"{name}.{segment}", os.O_RDONLY)
    except FileNotFoundError:
        return _open_regular(directory_fd, name, os.O_RDONLY)


def _open_regular(directory_fd: int, name: str, flags: int) -> int:
    """Open a regular file of the directory itself: no link is followed, no FIFO waited for."""
    mode = 0o640 if flags & os.O_CREAT else 0
    fd = syscalls.openat2(directory_fd, name, flags | os.O_NONBLOCK, _BENEATH, mode)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", name)
    return fd

"""A job's output: pipes in, segments of the log out.

The bytes of both pipes are spliced into one log, in the order in which they are seen. One absolute offset runs
through the job's life; segment n holds the offsets from n times the segment size, and is closed at exactly
that size. The open segment is `job_<id>.log`, closed ones have their number behind it, and each has its index.

Splice moves the bytes inside the kernel, so that a death of this process between two system calls loses none:
they are in the pipe or in the file. What the disk does not take is thrown away, for no job may hang for want of
disk: the offset goes on over it, and the index says that it is a gap.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select

from jobworker.errors import OutputDropped
from jobworker.jobs import JobRecord, Source
from jobworker.kernel import beneath
from jobworker.supervisor import index
from jobworker.supervisor.index import Index
from jobworker.wire.output_index import DROPPED, LOST, NOT_WRITTEN, RECORD

# Fair between jobs: with more a round, a quiet job's bytes wait for the flood of another.
ROUND_BYTES = 64 * 1024
# When nothing else is ready there is nobody to be fair to.
LONE_BYTES = 1024 * 1024

_SPLICE_F_NONBLOCK = 2

_NO_INDEX = "its index is gone"


class OutputLog:
    """The log of one job, new or of an earlier life; owns the descriptors of its directory and open segment.

    Args:
        keep: the oldest segments are dropped so that the others, the open one included, have no more bytes than
            this, or than one segment; 0 for all.
        lost: as known of an earlier life.

    Attributes:
        size: the absolute offset behind the last byte.
        lost: how many of the bytes before that are gaps.
        failing: why output can't be written at the moment, as an errno's name; empty when it can.
    """

    def __init__(
        self, directory_fd: int, job_id: str, segment_bytes: int, *, keep: int = 0, lost: int = 0
    ) -> None:
        self._directory = directory_fd
        self._name = f"job_{job_id}"
        self._segment_bytes = segment_bytes
        self._keep_segments = max(1, keep // segment_bytes) if keep else 0
        self._log = -1
        self.lost = lost
        self.failing = ""
        try:
            closed = _closed_segments(self._directory, self._name, "log")
            self._segment = max(closed, default=-1) + 1
            self._oldest = min(closed, default=self._segment)
            self.size = self._segment * segment_bytes + self._live_bytes()
            self._take_over_index()
        except OSError:
            os.close(directory_fd)
            raise
        self._index = Index(lambda: self._open_file("idx"), segment_bytes, self._segment)

    # What an earlier life has left.

    def _live_bytes(self) -> int:
        try:
            return os.stat(f"{self._name}.log", dir_fd=self._directory, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0

    def _take_over_index(self) -> None:
        """Go on behind all that the index knows: gaps at the end of the log are in no file."""
        known = self._index_ends()
        if known is None or known[0].offset % self._segment_bytes:
            return
        first, last = known
        number = first.offset // self._segment_bytes
        if number < self._segment:
            # A rotation was cut off after the log's own rename.
            self._rename("idx", number)
            return
        if number > self._segment:
            # Segments that are gaps as a whole have no file.
            self._segment, self.size = number, first.offset + self._live_bytes()
        if last.offset // self._segment_bytes == number and last.end <= self._end_of_segment():
            self.size = max(self.size, last.end)
        if self.lost or last.source == LOST:
            # Of segments that were dropped, what was known of them is all there is.
            self.lost = max(self.lost, self._count_lost())

    def _index_ends(self) -> tuple[index.Record, index.Record] | None:
        with contextlib.suppress(OSError):
            fd = beneath.open_regular(self._directory, f"{self._name}.idx", os.O_RDONLY)
            try:
                return index.ends(fd)
            finally:
                os.close(fd)
        return None

    def _count_lost(self) -> int:
        lost = 0
        for name in (
            f"{self._name}.idx",
            *(f"{self._name}.idx.{number}" for number in _closed_segments(self._directory, self._name, "idx")),
        ):
            with contextlib.suppress(OSError):
                # A record for each byte, at the most.
                limit = self._segment_bytes * RECORD.size
                lost += index.gaps(beneath.read_regular(self._directory, name, limit))
        return lost

    # Writing.

    def open(self) -> None:
        """Have the files of the open segment.

        Raises:
            OSError: they can't be opened, or made.
        """
        self._index.open()
        if self._log < 0:
            self._log = self._open_file("log")

    def _open_file(self, kind: str) -> int:
        return beneath.open_regular(self._directory, f"{self._name}.{kind}", os.O_WRONLY | os.O_CREAT)

    def pump(self, pipe: int, source: Source, limit: int = ROUND_BYTES) -> bool:
        """Move up to `limit` bytes from a pipe to the log; False when the pipe has no writer left.

        Raises:
            BlockingIOError: the pipe is empty.
        """
        if self.size == self._end_of_segment() and not _has_data(pipe):
            # A segment is closed when its successor has something to hold, not before.
            return False
        at = self.size % self._segment_bytes
        count = min(limit, self._segment_bytes - at)
        try:
            self._prepare()
            moved = os.splice(pipe, self._log, count, offset_dst=at, flags=_SPLICE_F_NONBLOCK)
        except BlockingIOError:
            raise
        except OSError as error:
            return self._throw_away(pipe, min(count, ROUND_BYTES), error)
        if moved:
            self.failing = ""
            self._index.note(self.size, moved, source)
            self.size += moved
        return moved > 0

    def _end_of_segment(self) -> int:
        return (self._segment + 1) * self._segment_bytes

    def _prepare(self) -> None:
        """Rotate if the open segment is full; may fail at any step and be called again."""
        number = self.size // self._segment_bytes
        if number != self._segment:
            self._close_segment()
            self._segment = number
            self._drop_oldest()
            self._index.begin_segment(number)
        self.open()
        self._index.catch_up()

    def _close_segment(self) -> None:
        self._index.close_segment()
        self._close_log()
        # The log's own rename is what makes a segment closed.
        for kind in ("log", "idx"):
            self._rename(kind, self._segment)

    def _drop_oldest(self) -> None:
        """Make room for the segment that is begun. What can't be removed now is tried again with the next one."""
        with contextlib.suppress(OSError):
            while self._keep_segments and self._oldest <= self._segment - self._keep_segments:
                for kind in ("idx", "log"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(f"{self._name}.{kind}.{self._oldest}", dir_fd=self._directory)
                self._oldest += 1

    def _rename(self, kind: str, number: int) -> None:
        live = f"{self._name}.{kind}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(live, f"{live}.{number}", src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def _throw_away(self, pipe: int, count: int, error: OSError) -> bool:
        data = os.read(pipe, count)
        if data:
            self.failing = errno.errorcode.get(error.errno or 0, "UNKNOWN")
            self._index.note(self.size, len(data), LOST)
            self.size += len(data)
            self.lost += len(data)
        return bool(data)

    def _close_log(self) -> None:
        if self._log >= 0:
            os.close(self._log)
        self._log = -1

    def close(self) -> None:
        self._close_log()
        self._index.close()
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
        log, indexes = _open_log(directory_fd, name, segment)
        opened.append(log)
        opened.append(_open_index(directory_fd, indexes))
        _check_segment(opened[1], segment, record.segment_bytes)
    except OSError as error:
        for fd in opened:
            os.close(fd)
        reason = _why_missing(directory_fd, name, segment, error)
        raise OutputDropped(record.job_id, segment * record.segment_bytes, reason) from None
    return opened[0], opened[1]


def _why_missing(directory_fd: int, name: str, segment: int, error: OSError) -> str:
    if error.errno != errno.ENOENT:
        return error.strerror or "unreadable"
    kept = _closed_segments(directory_fd, name, "log")
    if segment in kept:
        return _NO_INDEX
    return DROPPED if kept and segment < min(kept) else NOT_WRITTEN


def _closed_segments(directory_fd: int, name: str, kind: str) -> list[int]:
    prefix = f"{name}.{kind}."
    with os.scandir(directory_fd) as entries:
        numbers = [entry.name[len(prefix) :] for entry in entries if entry.name.startswith(prefix)]
    return [int(number) for number in numbers if number.isdecimal()]


def _open_log(directory_fd: int, name: str, segment: int) -> tuple[int, tuple[str, ...]]:
    """The log of a segment, and the names that its index may have: never those of another segment's."""
    live = f"{name}.idx"
    try:
        log = beneath.open_regular(directory_fd, f"{name}.log.{segment}", os.O_RDONLY)
    except FileNotFoundError:
        return beneath.open_regular(directory_fd, f"{name}.log", os.O_RDONLY), (live,)
    # It is renamed after the log, and that may have been cut off.
    return log, (f"{live}.{segment}", live)


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

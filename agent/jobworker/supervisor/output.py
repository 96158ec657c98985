"""A job's output: pipes in, segments of the log out.

The bytes of both pipes are spliced into one log, in the order in which they are seen. One absolute offset runs
through the job's life; segment n holds the offsets from n times the segment size, and is closed at exactly
that size. `segments.py` has their files.

Splice moves the bytes inside the kernel, so that a death of this process between two system calls loses none:
they are in the pipe or in the file. What the disk does not take is thrown away, for no job may hang for want of
disk: the offset goes on over it, and the index says that it is a gap.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections.abc import Callable

from jobworker.jobs import Source
from jobworker.kernel import beneath
from jobworker.supervisor import log_recovery, segments
from jobworker.supervisor.index import Index
from jobworker.supervisor.segments import Closed, Holdings
from jobworker.wire.output_index import LOST

# Fair between jobs: with more a round, a quiet job's bytes wait for the flood of another.
ROUND_BYTES = 64 * 1024
# When nothing else is ready there is nobody to be fair to.
LONE_BYTES = 1024 * 1024


class OutputLog:
    """The log of one job, new or of an earlier life; owns the descriptors of its directory and open segment.

    Args:
        keep: the oldest segments are dropped so that the others, the open one included, have no more bytes on the
            disk than this, or than one segment and what is moved at once; 0 for all.
        lost: as known of an earlier life.

    Attributes:
        size: the absolute offset behind the last byte.
        lost: how many of the bytes before that are gaps.
        cut: how many of those were written, and cut off or taken away by somebody else.
        failing: why output can't be written at the moment, as an errno's name; empty when it can.
    """

    def __init__(
        self, directory_fd: int, job_id: str, segment_bytes: int, *, keep: int = 0, lost: int = 0
    ) -> None:
        self._directory = directory_fd
        self._name = f"job_{job_id}"
        self._segment_bytes = segment_bytes
        self._keep_closed = max(0, keep - segment_bytes) if keep else None
        # An earlier life may have died before it dropped the segment that it had closed.
        self._spared = self._keep_closed is not None
        self._fd = -1
        # Which file it is, as it was opened.
        self._status: os.stat_result | None = None
        self.cut = 0
        self.failing = ""
        try:
            found = log_recovery.recover(directory_fd, self._name, segment_bytes, lost)
        except OSError:
            os.close(directory_fd)
            raise
        self._closed, self._segment = found.closed, found.segment
        # Closed ones that could not be removed: since the open one was begun, and ever, which is told of once.
        self._aside: set[int] = set()
        self._refused: set[int] = set()
        self._on_refused: Callable[[int, OSError], None] = lambda _number, _error: None
        # How long the open segment's file is, by what was written to it.
        self._written = found.written
        self.size, self.lost = found.size, found.lost
        self._stored = self._count_stored()
        self._index = Index(lambda: self._open_file("idx"), segment_bytes, found.segment, found.index_bytes)

    # Writing.

    def open(self) -> None:
        """Have the files of the open segment.

        Raises:
            OSError: they can't be opened, or made.
        """
        # Before the index: one that has no log beside it is that of a segment which somebody has removed.
        if self._fd < 0:
            self._fd = self._open_file("log")
            self._status = os.fstat(self._fd)
        self._index.open()

    def _open_file(self, kind: str) -> int:
        return beneath.open_regular(self._directory, f"{self._name}.{kind}", os.O_RDWR | os.O_CREAT)

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
            self._prepare(self.size // self._segment_bytes)
            self._look_for_damage()
            moved = os.splice(pipe, self._fd, count, offset_dst=at, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            raise
        except OSError as error:
            return self._throw_away(pipe, min(count, ROUND_BYTES), error)
        if moved:
            self.failing = ""
            self._index.note(self.size, moved, source)
            self.size += moved
            self._written = at + moved
            if self._spared and not self._index.behind:
                self._drop_spared()
        return moved > 0

    def _look_for_damage(self) -> None:
        """Have a gap for what somebody has cut off the open segment's file, or taken away with it.

        The next write would make zeros of the one, and with the other go where nobody can read it.

        Raises:
            OSError: the index does not take that, or there can be no file; nothing may be written now.
        """
        found = segments.live_status(self._directory, self._name, "log")
        is_ours = found and self._status and os.path.samestat(found, self._status)
        left = found.st_size if found and is_ours else 0
        if left < self._written:
            cut = self._index.lose(self._segment * self._segment_bytes + left, self.size)
            self.lost += cut
            self.cut += cut
            self._written = left
        if not is_ours:
            self._close_log()
            segments.clear(self._directory, self._name, "log")
            self.open()

    def _end_of_segment(self) -> int:
        return (self._segment + 1) * self._segment_bytes

    def _prepare(self, number: int) -> None:
        """Have this segment open, rotating if another one is; may fail at any step and be called again."""
        if number != self._segment:
            if self._fd >= 0:
                self._look_for_damage()
            self._close_segment()
            self._segment, self._written = number, 0
            self._spared = self._keep_closed is not None
            self._aside.clear()
            self._drop_what_is_too_much(but=1)
            self._index.begin_segment(number)
        self.open()
        self._index.catch_up()

    def _close_segment(self) -> None:
        self._index.close_segment()
        self._close_log()
        files = Closed(*(segments.live_bytes(self._directory, self._name, kind) for kind in ("log", "idx")))
        # The log's own rename is what makes a segment closed.
        for kind in ("log", "idx"):
            segments.close(self._directory, self._name, kind, self._segment)
        self._closed[self._segment] = files
        self._stored = self._count_stored()

    def put_on_record(self) -> bool:
        """Have another life know how far the output goes, and of its gaps; False if that can't be written."""
        if self._index.untold:
            with contextlib.suppress(OSError):
                self._prepare((self.size - 1) // self._segment_bytes)
        return not self._index.untold

    # What is kept.

    def on_refused(self, callback: Callable[[int, OSError], None]) -> None:
        """Call back, once for each, with the number of a closed segment that can't be removed, and why."""
        self._on_refused = callback

    @property
    def stored(self) -> int:
        """The bytes that the log may come to have on the disk before it begins another segment."""
        return self._stored + self._segment_bytes + self._index.size

    @property
    def closed_segments(self) -> int:
        """How many closed segments there are, without those that can't be removed now."""
        return len(self._closed) - len(self._aside)

    @property
    def open_segment(self) -> int:
        """The number of the open segment."""
        return self._segment

    @property
    def holdings(self) -> Holdings:
        """What there is to be read."""
        # Of what was to be removed there may be some, but it is not whole.
        closed = tuple(number for number in self._closed if number not in self._refused)
        return Holdings(closed, self._segment, self.size, self.lost)

    def _count_stored(self) -> int:
        return sum(files.stored for files in self._closed.values())

    def compressed(self, number: int, size: int) -> None:
        """A closed segment's output has so many bytes now."""
        if files := self._closed.get(number):
            files.log = size
            self._stored = self._count_stored()

    def _drop_what_is_too_much(self, *, but: int = 0) -> None:
        """Make room for the segment that is begun, but leave so many."""
        if self._keep_closed is not None:
            while sum(files.log or 0 for files in self._closed.values()) > self._keep_closed:
                if self.closed_segments <= but or not self.drop_oldest():
                    break

    def _drop_spared(self) -> None:
        """Drop what was just closed, if that is too much.

        Its name alone tells the open segment's number until the index of that does: without either, who comes
        after a death would begin at 0 again.
        """
        self._spared = False
        self._drop_what_is_too_much()

    def drop_oldest(self) -> bool:
        """Remove the oldest closed segment that can be; False if there is none.

        What can't be is tried again when the next segment is begun: a disk may be read-only for a while.
        """
        for number in [number for number in self._closed if number not in self._aside]:
            try:
                segments.drop(self._directory, self._name, number)
            except OSError as error:
                self._set_aside(number, error)
            else:
                del self._closed[number]
                self._stored = self._count_stored()
                return True
        return False

    def _set_aside(self, number: int, error: OSError) -> None:
        self._aside.add(number)
        if number not in self._refused:
            self._refused.add(number)
            self._on_refused(number, error)

    def _throw_away(self, pipe: int, count: int, error: OSError) -> bool:
        data = os.read(pipe, count)
        if data:
            self.failing = errno.errorcode.get(error.errno or 0, "UNKNOWN")
            self._index.note(self.size, len(data), LOST)
            self.size += len(data)
            self.lost += len(data)
            if self._spared:
                # The disk may be full of that alone, and have room for the index behind it.
                self._drop_spared()
                with contextlib.suppress(OSError):
                    self._index.catch_up()
        return bool(data)

    def _close_log(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

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

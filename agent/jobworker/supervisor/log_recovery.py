"""Where a job's log goes on that an earlier life has left, or where a new one begins.

Gaps at the end of a log are in no file, so only its index tells how far it goes; of what was written last the
index may know nothing, so only the file does.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from jobworker.kernel import beneath
from jobworker.supervisor import index, segments
from jobworker.supervisor.segments import Closed
from jobworker.wire.output_index import LOST, RECORD


@dataclass(slots=True)
class LogState:
    """How far a log goes. A live index that tells anything is that of the open segment.

    Attributes:
        closed: its closed segments by number, the oldest first.
        segment: the number of the open one.
        written: how long the open one's file has to be, in bytes.
        size: the offset behind all output that files have, and all that indexes tell of.
        lost: so many bytes before that are gaps.
        index_bytes: what the live index has.
    """

    closed: dict[int, Closed]
    segment: int
    written: int
    size: int
    lost: int
    index_bytes: int


def recover(directory_fd: int, name: str, segment_bytes: int, lost: int) -> LogState:
    """Find where a log goes on, and finish a rotation that was cut off.

    Args:
        directory_fd: of its files.
        name: what they are called before the first dot.
        segment_bytes: the size of a closed segment.
        lost: as the job's record has it, which may be older than the files.

    Raises:
        OSError: the files can't be looked at.
    """
    state = _by_files(directory_fd, name, segment_bytes, lost)
    known = segments.live_ends(directory_fd, name)
    number = index.segment_of(known, segment_bytes)
    if known is None or number is None or not known[1].length:
        # It died before it had noted anything in this segment, or somebody has emptied the index.
        return state
    last = known[1]
    if number < state.segment:
        # It died in a rotation, behind the log's own rename.
        segments.close(directory_fd, name, "idx", number)
        return _by_files(directory_fd, name, segment_bytes, lost)
    start = number * segment_bytes
    if number > state.segment:
        # No file tells the number: the segments before were gaps as a whole, or have all been dropped.
        state.segment, state.size = number, start + state.written
    if last.offset // segment_bytes == number and last.end <= start + segment_bytes:
        # The file ends earlier if it died over a gap, and later if it died before it had noted a splice.
        state.size = max(state.size, last.end)
        if last.source != LOST:
            # This was in the file: where that is shorter, it was cut while nobody was there.
            state.written = max(state.written, last.end - start)
    if lost or last.source == LOST:
        # It may have died before the job's record had the count, which is all there is of dropped segments.
        state.lost = max(lost, _count_lost(directory_fd, name, segment_bytes, state.closed))
    return state


def _by_files(directory_fd: int, name: str, segment_bytes: int, lost: int) -> LogState:
    closed = segments.closed(directory_fd, name)
    segment = max((number for number, files in closed.items() if files.log is not None), default=-1) + 1
    written = segments.live_bytes(directory_fd, name, "log")
    index_bytes = segments.live_bytes(directory_fd, name, "idx")
    return LogState(closed, segment, written, segment * segment_bytes + written, lost, index_bytes)


def _count_lost(directory_fd: int, name: str, segment_bytes: int, closed: dict[int, Closed]) -> int:
    # A record for each byte, at the most.
    limit, lost = segment_bytes * RECORD.size, 0
    for file in (f"{name}.idx", *(f"{name}.idx.{number}" for number in closed)):
        with contextlib.suppress(OSError):
            lost += index.gaps(beneath.read_regular(directory_fd, file, limit))
    return lost

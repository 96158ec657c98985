"""What is handed out as a segment of a log: that segment, or why it is not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobworker.errors import OutputDropped
from jobworker.supervisor.log_reading import open_segment
from jobworker.supervisor.output import OutputLog
from jobworker.wire.output_index import DROPPED, NOT_WRITTEN, RECORD, REMOVED
from support.output_logs import ID, SEGMENT, feed, no_room_beyond, open_log, plant, record_of, segment_of


@pytest.fixture
def log(tmp_path: Path) -> Iterator[OutputLog]:
    opened = open_log(tmp_path)
    yield opened
    opened.close()


@pytest.mark.parametrize("what", ["symlink", "fifo", "directory"])
def test_a_planted_file_is_never_read(tmp_path: Path, log: OutputLog, what: str) -> None:
    feed(log, b"a")
    plant(tmp_path / f"job_{ID}.log.7", what)
    directory = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OutputDropped):
        open_segment(directory, record_of(log), 7)
    os.close(directory)


@pytest.mark.parametrize(
    ("removed", "reason"), [("log.0", REMOVED), ("log.1", REMOVED), ("idx.1", "its index is gone")]
)
def test_another_segment_never_stands_for_one_that_was_removed(
    tmp_path: Path, log: OutputLog, removed: str, reason: str
) -> None:
    feed(log, b"a" * SEGMENT + b"b" * SEGMENT + b"c" * SEGMENT)
    (tmp_path / f"job_{ID}.{removed}").unlink()
    directory = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OutputDropped) as caught:
        open_segment(directory, record_of(log), int(removed[-1]))
    os.close(directory)
    assert caught.value.reason == reason


# Of a job that runs, the supervisor knows which segments there are; of one that has ended, what the files tell.
RUNS_OR_HAS_ENDED = pytest.mark.parametrize("runs", [True, False], ids=["running", "ended"])


def zero(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@RUNS_OR_HAS_ENDED
@pytest.mark.parametrize("damage", [empty, zero])
def test_an_index_that_tells_nothing_is_that_of_no_other_segment(
    tmp_path: Path, damage: Callable[[Path], None], *, runs: bool
) -> None:
    log = OutputLog(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY), ID, SEGMENT, keep=4 * SEGMENT)
    feed(log, b"".join(bytes([number]) * SEGMENT for number in range(6)) + b"open")
    for kind in ("log", "idx"):
        (tmp_path / f"job_{ID}.{kind}.4").unlink()
    damage(tmp_path / f"job_{ID}.idx")
    for gone in (0, 2, 4):
        with pytest.raises(OutputDropped):
            segment_of(tmp_path, log, gone, runs=runs)
    assert segment_of(tmp_path, log, 5, runs=runs) == bytes([5]) * SEGMENT
    assert segment_of(tmp_path, log, 6, runs=runs) == b"open"
    log.close()


@pytest.mark.parametrize("damage", [empty, zero])
def test_the_open_segment_s_index_is_not_taken_for_one_that_was_removed(
    tmp_path: Path, log: OutputLog, damage: Callable[[Path], None]
) -> None:
    feed(log, b"a" * SEGMENT + b"b" * SEGMENT + b"c")
    (tmp_path / f"job_{ID}.idx.1").unlink()
    damage(tmp_path / f"job_{ID}.idx")
    with pytest.raises(OutputDropped, match="its index is gone"):
        segment_of(tmp_path, log, 1, runs=True)


@RUNS_OR_HAS_ENDED
def test_a_disk_that_took_a_segment_s_first_bytes_and_not_its_index(
    tmp_path: Path, log: OutputLog, *, runs: bool
) -> None:
    feed(log, b"a" * SEGMENT)
    with no_room_beyond(RECORD.size // 2):
        feed(log, b"b" * (2 * SEGMENT + 1))
    assert (log.open_segment, (tmp_path / f"job_{ID}.log").read_bytes()) == (1, b"b" * (RECORD.size // 2))
    for lost in (2, 3):
        with pytest.raises(OutputDropped) as caught:
            segment_of(tmp_path, log, lost, runs=runs)
        assert caught.value.reason == NOT_WRITTEN
    assert segment_of(tmp_path, log, 0, runs=runs) == b"a" * SEGMENT


@RUNS_OR_HAS_ENDED
def test_what_is_not_there_is_told_of_up_to_where_output_goes_on(tmp_path: Path, *, runs: bool) -> None:
    log = OutputLog(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY), ID, SEGMENT, keep=4 * SEGMENT)
    feed(log, b"a" * 6 * SEGMENT)
    with no_room_beyond(0):
        feed(log, b"x" * 3 * SEGMENT)
    feed(log, b"b")
    # Segments 3 to 6 and 9 are there, of which 6 is a gap.
    for segment, goes_on in ((0, 3), (2, 3), (7, 9), (8, 9)):
        with pytest.raises(OutputDropped) as caught:
            segment_of(tmp_path, log, segment, runs=runs)
        assert (caught.value.offset, caught.value.goes_on) == (segment * SEGMENT, goes_on * SEGMENT)
    (tmp_path / f"job_{ID}.log.4").unlink()
    with pytest.raises(OutputDropped) as caught:
        segment_of(tmp_path, log, 4, runs=runs)
    assert caught.value.goes_on == 5 * SEGMENT
    log.close()


def test_what_a_running_job_knows_to_be_gone_is_not_looked_for(tmp_path: Path) -> None:
    log = OutputLog(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY), ID, SEGMENT, keep=1)
    feed(log, b"a" * 3 * SEGMENT)
    no_directory = -1
    with pytest.raises(OutputDropped) as caught:
        open_segment(no_directory, record_of(log), 0, log.holdings)
    assert (caught.value.reason, caught.value.goes_on) == (DROPPED, 2 * SEGMENT)
    log.close()


@RUNS_OR_HAS_ENDED
def test_a_segment_that_was_removed_with_its_index_was_not_lost(
    tmp_path: Path, log: OutputLog, *, runs: bool
) -> None:
    feed(log, b"a" * SEGMENT + b"b" * SEGMENT + b"c" * SEGMENT)
    for kind in ("log", "idx"):
        (tmp_path / f"job_{ID}.{kind}.1").unlink()
    with pytest.raises(OutputDropped, match=REMOVED):
        segment_of(tmp_path, log, 1, runs=runs)


def test_reading_needs_no_path(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"a" * SEGMENT + b"b")
    directory = os.open(tmp_path, os.O_RDONLY)
    for segment, content in ((0, b"a" * SEGMENT), (1, b"b")):
        data_fd, index_fd, start, compressed = open_segment(directory, record_of(log), segment)
        assert (start, compressed) == (segment * SEGMENT, 0)
        assert os.pread(data_fd, SEGMENT, 0) == content
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(data_fd, b"x")
        os.close(data_fd)
        os.close(index_fd)
    os.close(directory)

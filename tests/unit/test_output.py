"""The log of a job: segments to the byte, the index beside them, and what happens when it can't be written."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.errors import OutputDropped
from jobworker.jobs import Source
from jobworker.kernel import beneath
from jobworker.supervisor.index import gaps as lost_bytes
from jobworker.supervisor.log_reading import open_segment
from jobworker.supervisor.output import OutputLog
from jobworker.wire.output_index import DROPPED, LOST, NOT_WRITTEN, RECORD
from support import seccomp
from support.output_logs import ID, SEGMENT, feed, no_room_beyond, open_log, plant, record_of, segment_of

_NR_PWRITE64 = 18


@pytest.fixture
def log(tmp_path: Path) -> Iterator[OutputLog]:
    opened = open_log(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={2 * SEGMENT}", "jobworker-test", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([LOST, *Source])), max_size=50), st.binary())
def test_what_is_lost_is_counted_record_by_record(records: list[tuple[int, int]], cut_off: bytes) -> None:
    data = b"".join(RECORD.pack(0, length, source, 0, 0) for length, source in records)
    lost = sum(length for length, source in records if source == LOST)
    # The last one may have been cut off.
    assert lost_bytes(data + cut_off[: RECORD.size - 1]) == lost


def index(path: Path, suffix: str = "") -> list[tuple[int, int, int]]:
    data = (path / f"job_{ID}.idx{suffix}").read_bytes()
    return [fields[:3] for fields in RECORD.iter_unpack(data)]


@pytest.mark.parametrize("size", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 3 * SEGMENT + 17])
def test_segments_are_exact(tmp_path: Path, log: OutputLog, size: int) -> None:
    data = os.urandom(size)
    feed(log, data)
    closed = sorted(int(path.suffix[1:]) for path in tmp_path.glob(f"job_{ID}.log.*"))
    assert closed == list(range(max(0, (size - 1) // SEGMENT)))
    parts = [(tmp_path / f"job_{ID}.log.{n}").read_bytes() for n in closed]
    assert all(len(part) == SEGMENT for part in parts)
    assert b"".join((*parts, (tmp_path / f"job_{ID}.log").read_bytes())) == data
    assert log.size == size


def test_the_index_tells_the_sources(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"out", Source.STDOUT)
    feed(log, b"error", Source.STDERR)
    feed(log, b"more", Source.STDOUT)
    assert index(tmp_path) == [(0, 3, 1), (3, 5, 2), (8, 4, 1)]


def test_single_bytes_do_not_make_an_index_larger_than_the_log(tmp_path: Path, log: OutputLog) -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    for _ in range(2000):
        os.write(writing, b"x")
        log.pump(reading, Source.STDOUT)
    os.close(writing)
    os.close(reading)
    records = index(tmp_path)
    assert sum(length for _, length, _ in records) == 2000
    assert len(records) < 1000


def test_the_index_follows_the_segments(tmp_path: Path, log: OutputLog) -> None:
    feed(log, os.urandom(2 * SEGMENT + 5))
    covered = [record for suffix in (".0", ".1", "") for record in index(tmp_path, suffix)]
    end = 0
    for offset, length, _ in covered:
        assert offset == end
        end += length
    assert end == log.size


def test_an_earlier_life_s_log_is_continued(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"a" * (SEGMENT + 3))
    # Half a record, as a death between two writes leaves it.
    with open(tmp_path / f"job_{ID}.idx", "ab") as file:
        file.write(b"half")
    again = open_log(tmp_path)
    assert again.size == SEGMENT + 3
    feed(again, b"bc", Source.STDERR)
    again.close()
    assert (tmp_path / f"job_{ID}.log").read_bytes() == b"aaabc"
    assert index(tmp_path)[-1] == (SEGMENT + 3, 2, 2)


def test_times_do_not_go_back_when_the_clock_does(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"a")
    # As an earlier life has left it, whose clock was a day ahead.
    tomorrow = time.time_ns() + 24 * 3600 * 10**9
    (tmp_path / f"job_{ID}.idx").write_bytes(RECORD.pack(0, 1, Source.STDOUT, 0, tomorrow))
    again = open_log(tmp_path)
    for source in (Source.STDERR, Source.STDOUT):
        feed(again, b"b" * SEGMENT, source)
    os.truncate(tmp_path / f"job_{ID}.log", 0)
    feed(again, b"c", Source.STDERR)
    again.close()
    data = b"".join((tmp_path / f"job_{ID}.{kind}").read_bytes() for kind in ("idx.0", "idx.1", "idx"))
    assert {time_ns for *_, time_ns in RECORD.iter_unpack(data)} == {tomorrow}
    assert len(data) == 6 * RECORD.size


@pytest.mark.parametrize("stray", [(5 * SEGMENT, 1), (0, 0)], ids=["another segment's", "nobody's"])
def test_a_time_that_no_record_of_the_segment_has_holds_nothing_up(
    tmp_path: Path, log: OutputLog, stray: tuple[int, int]
) -> None:
    feed(log, b"a")
    with open(tmp_path / f"job_{ID}.idx", "ab") as file:
        file.write(RECORD.pack(*stray, Source.STDOUT, 0, 2**63))
    again = open_log(tmp_path)
    feed(again, b"b", Source.STDERR)
    again.close()
    assert [*RECORD.iter_unpack((tmp_path / f"job_{ID}.idx").read_bytes())][-1][-1] < 2**63


@pytest.mark.parametrize("renamed", [("idx",), ("idx", "log")])
def test_a_cut_off_rotation_is_finished(tmp_path: Path, log: OutputLog, renamed: tuple[str, ...]) -> None:
    feed(log, b"a" * SEGMENT)
    for kind in renamed:
        os.rename(tmp_path / f"job_{ID}.{kind}", tmp_path / f"job_{ID}.{kind}.0")
    again = open_log(tmp_path)
    feed(again, b"b")
    assert again.size == SEGMENT + 1
    again.close()
    assert (tmp_path / f"job_{ID}.log.0").read_bytes() == b"a" * SEGMENT
    assert (tmp_path / f"job_{ID}.log").read_bytes() == b"b"
    assert [entry for suffix in (".0", "") for entry in index(tmp_path, suffix)][-1] == (SEGMENT, 1, 1)


def test_an_index_that_somebody_has_emptied_takes_no_other_s_place(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"a" * SEGMENT)
    feed(log, b"b" * 10)
    feed(log, b"b" * 10, Source.STDERR)
    os.truncate(tmp_path / f"job_{ID}.idx", 0)
    # Its first record is a hole now.
    feed(log, b"c" * 10)
    before = index(tmp_path, ".0"), index(tmp_path)
    assert before[1][0] == (0, 0, 0)
    again = open_log(tmp_path)
    assert (index(tmp_path, ".0"), index(tmp_path)) == before
    assert again.size == log.size
    again.close()


def test_an_index_goes_on_behind_bytes_that_nobody_came_to_note(tmp_path: Path) -> None:
    # The life before died between the first splice of the segment and its record.
    (tmp_path / f"job_{ID}.log").write_bytes(b"a" * 100)
    log = open_log(tmp_path)
    feed(log, b"b" * 100)
    with no_room_beyond(200):
        feed(log, b"c" * 50)
    log.close()
    again = open_log(tmp_path)
    assert (again.size, again.lost, index(tmp_path)) == (250, 50, [(100, 100, 1), (200, 50, LOST)])
    again.close()


def gaps(path: Path, *suffixes: str) -> list[tuple[int, int]]:
    records = [record for suffix in (*suffixes, "") for record in index(path, suffix)]
    return [(offset, length) for offset, length, source in records if source == LOST]


def test_what_can_t_be_written_is_a_gap_and_does_not_block(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"kept")
    with no_room_beyond(4):
        feed(log, b"x" * 100_000)
        assert (log.size, log.lost) == (100_004, 100_000)
        assert log.failing in ("EFBIG", "ENOSPC")
    feed(log, b" and more", Source.STDERR)
    assert (log.size, log.failing) == (100_013, "")
    assert index(tmp_path) == [(0, 4, 1), (4, 100_000, LOST), (100_004, 9, 2)]
    content = (tmp_path / f"job_{ID}.log").read_bytes()
    assert (content[:4], content[100_004:]) == (b"kept", b" and more")


def test_a_gap_outlives_the_writer(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"kept")
    with no_room_beyond(4):
        feed(log, b"x" * 100)
    feed(log, b"after")
    with no_room_beyond(4):
        # The index has room, in the block that it has already.
        feed(log, b"y" * 10)
    log._index.catch_up()
    again = open_log(tmp_path)
    assert (again.size, again.lost) == (119, 110)
    again.close()


def test_the_oldest_segments_go(tmp_path: Path) -> None:
    def opened() -> OutputLog:
        return OutputLog(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY), ID, SEGMENT, keep=3 * SEGMENT + 1)

    def kept() -> set[str]:
        return {path.name.removeprefix(f"job_{ID}.") for path in tmp_path.iterdir()}

    log = opened()
    feed(log, b"x" * (3 * SEGMENT))
    assert kept() == {"log", "idx", "log.0", "idx.0", "log.1", "idx.1"}
    feed(log, b"x")
    assert kept() == {"log", "idx", "log.1", "idx.1", "log.2", "idx.2"}
    log.close()
    log = opened()
    feed(log, b"x" * (4 * SEGMENT))
    assert kept() == {"log", "idx", "log.5", "idx.5", "log.6", "idx.6"}
    assert (log.size, log.lost) == (7 * SEGMENT + 1, 0)
    directory = os.open(tmp_path, os.O_RDONLY)
    for dropped in (0, 4):
        with pytest.raises(OutputDropped) as caught:
            open_segment(directory, record_of(log), dropped)
        assert caught.value.reason == DROPPED
    for fd in open_segment(directory, record_of(log), 5)[:2]:
        os.close(fd)
    os.close(directory)
    log.close()


def test_a_segment_that_can_t_be_removed_is_told_of_once_and_others_go(tmp_path: Path) -> None:
    log, told = OutputLog(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY), ID, SEGMENT, keep=3 * SEGMENT), []
    log.on_refused(lambda number, error: told.append((number, error.errno)))
    feed(log, b"x" * 3 * SEGMENT)
    (tmp_path / f"job_{ID}.log.1").unlink()
    (tmp_path / f"job_{ID}.log.1").mkdir()
    feed(log, b"x" * 5 * SEGMENT)
    assert {path.suffix for path in tmp_path.glob("*.log.*")} == {".1", ".6"}
    with pytest.raises(OutputDropped, match=re.escape(DROPPED)):
        segment_of(tmp_path, log, 1, runs=True)
    assert told == [(1, errno.EISDIR)]
    (tmp_path / f"job_{ID}.log.1").rmdir()
    feed(log, b"x" * SEGMENT)
    assert {path.suffix for path in tmp_path.glob("*.log.*")} == {".6", ".7"}
    assert log.closed_segments == 2
    log.close()


def test_a_log_may_be_one_segment(tmp_path: Path) -> None:
    log = OutputLog(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY), ID, SEGMENT, keep=1)
    feed(log, b"x" * (3 * SEGMENT + 5))
    assert {path.name for path in tmp_path.iterdir()} == {f"job_{ID}.log", f"job_{ID}.idx"}
    assert log.size == 3 * SEGMENT + 5
    log.close()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of the call is that of x86-64")
def test_a_log_of_one_segment_goes_on_where_a_death_between_splice_and_record_left_it(tmp_path: Path) -> None:
    def opened() -> OutputLog:
        return OutputLog(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY), ID, SEGMENT, keep=1)

    log = opened()
    feed(log, b"x" * SEGMENT)
    child = os.fork()
    if child == 0:
        try:
            # What a process that is killed right before its first record has done of a rotation.
            seccomp.take_away(_NR_PWRITE64)
            feed(log, b"y")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    log.close()
    assert (tmp_path / f"job_{ID}.idx").read_bytes() == b""
    log = opened()
    assert log.size == SEGMENT + 1
    feed(log, b"z")
    assert (log.size, (tmp_path / f"job_{ID}.log").read_bytes()) == (SEGMENT + 2, b"yz")
    assert index(tmp_path) == [(SEGMENT + 1, 1, 1)]
    assert {path.name for path in tmp_path.iterdir()} == {f"job_{ID}.log", f"job_{ID}.idx"}
    log.close()


@pytest.mark.root
def test_a_log_of_one_segment_makes_its_own_room_on_a_full_disk(disk: Path) -> None:
    log = OutputLog(os.open(disk, os.O_RDONLY | os.O_DIRECTORY), ID, SEGMENT, keep=1)
    feed(log, b"x" * SEGMENT)
    with open(disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(mmap.PAGESIZE))
    feed(log, b"y" * 100)
    assert (log.size, log.lost, log.failing) == (SEGMENT + 100, 100, "ENOSPC")
    feed(log, b"z" * 100)
    assert (log.size, log.lost, log.failing) == (SEGMENT + 200, 100, "")
    assert index(disk) == [(SEGMENT, 100, LOST), (SEGMENT + 100, 100, 1)]
    log.close()


def test_gaps_run_over_segments(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"a" * 10)
    with no_room_beyond(10):
        feed(log, b"x" * (3 * SEGMENT))
    feed(log, b"after")
    assert (log.size, log.lost) == (3 * SEGMENT + 15, 3 * SEGMENT)
    # Whole segments of nothing have no file, and the offsets say where the others belong.
    assert gaps(tmp_path, ".0") == [(10, SEGMENT - 10), (3 * SEGMENT, 10)]
    assert index(tmp_path)[-1] == (3 * SEGMENT + 10, 5, 1)
    directory = os.open(tmp_path, os.O_RDONLY)
    for lost in (1, 2):
        with pytest.raises(OutputDropped) as caught:
            open_segment(directory, record_of(log), lost)
        assert caught.value.reason == NOT_WRITTEN
    for kept in (0, 3):
        for fd in open_segment(directory, record_of(log), kept)[:2]:
            os.close(fd)
    os.close(directory)
    again = open_log(tmp_path)
    assert again.size == log.size
    feed(again, b"b" * SEGMENT)
    again.close()
    assert sorted(path.name for path in tmp_path.glob("*.log*")) == [
        f"job_{ID}.log",
        f"job_{ID}.log.0",
        f"job_{ID}.log.3",
    ]
    assert (tmp_path / f"job_{ID}.log").read_bytes() == b"b" * 15


def test_nothing_is_written_behind_a_gap_that_the_index_does_not_have(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"kept")
    os.close(log._index._fd)
    log._index._fd = os.open("/dev/full", os.O_WRONLY)
    with no_room_beyond(4):
        feed(log, b"x" * 100)
    feed(log, b"y" * 100)
    assert (tmp_path / f"job_{ID}.log").read_bytes() == b"kept"
    os.close(log._index._fd)
    log._index._fd = -1
    feed(log, b"z")
    assert (log.size, log.lost) == (205, 200)
    assert index(tmp_path) == [(0, 4, 1), (4, 200, LOST), (204, 1, 1)]


def test_an_index_that_is_cut_off_while_it_is_looked_at_takes_nothing(
    tmp_path: Path, log: OutputLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(log, b"kept")
    path, real = tmp_path / f"job_{ID}.idx", os.fstat

    def cut_off(fd: int) -> os.stat_result:
        found = real(fd)
        os.truncate(path, 0)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", cut_off)
        with pytest.raises(OSError, match="cut"):
            log._index.lose(2, 4)
    assert log._index.lose(2, 4) == 2


def test_a_directory_that_can_t_be_changed_costs_output_and_nothing_else(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"a" * SEGMENT)
    blocked = tmp_path / f"job_{ID}.log.0"
    blocked.mkdir()
    feed(log, b"x" * 10)
    assert (log.size, log.lost, log.failing) == (SEGMENT + 10, 10, "EISDIR")
    blocked.rmdir()
    feed(log, b"after")
    assert gaps(tmp_path, ".0") == [(SEGMENT, 10)]
    assert (tmp_path / f"job_{ID}.log").read_bytes()[10:] == b"after"


def test_gaps_that_are_whole_segments_do_not_pile_up(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"a" * SEGMENT)
    blocked = tmp_path / f"job_{ID}.log.0"
    blocked.mkdir()
    feed(log, b"x" * SEGMENT)
    before = log.stored
    feed(log, b"x" * 30 * SEGMENT + b"x")
    assert log.stored <= before + RECORD.size
    blocked.rmdir()
    feed(log, b"after")
    assert (log.size, log.lost) == (32 * SEGMENT + 6, 31 * SEGMENT + 1)
    assert index(tmp_path) == [(32 * SEGMENT, 1, LOST), (32 * SEGMENT + 1, 5, 1)]


@pytest.mark.parametrize("what", ["symlink", "fifo", "directory"])
@pytest.mark.parametrize("kind", ["log", "idx"])
def test_a_planted_file_is_never_written(tmp_path: Path, what: str, kind: str) -> None:
    plant(tmp_path / f"job_{ID}.{kind}", what)
    with pytest.raises(OSError, match=f"job_{ID}.{kind}"):
        open_log(tmp_path)
    assert (tmp_path / "secret").read_bytes() == b"do not touch"


def test_a_log_that_is_cut_has_a_gap_and_no_zeros(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"a" * 100)
    feed(log, b"b" * 100, Source.STDERR)
    os.truncate(tmp_path / f"job_{ID}.log", 150)
    feed(log, b"c" * 10)
    assert index(tmp_path) == [(0, 100, 1), (100, 50, 2), (150, 50, LOST), (200, 10, 1)]
    os.truncate(tmp_path / f"job_{ID}.log", 0)
    feed(log, b"d")
    assert index(tmp_path) == [(0, 210, LOST), (210, 1, 1)]
    assert (log.size, log.lost, log.cut) == (211, 210, 210)


def replace(path: Path) -> None:
    beside = path.with_name("beside")
    beside.write_bytes(b"z" * 100)
    beside.rename(path)


def move(path: Path) -> None:
    path.rename(path.with_name("moved"))


def plant_fifo(path: Path) -> None:
    path.unlink()
    plant(path, "fifo")


def plant_link(path: Path) -> None:
    path.unlink()
    plant(path, "symlink")


def plant_directory(path: Path) -> None:
    path.unlink()
    plant(path, "directory")


@pytest.mark.parametrize("before", [100, SEGMENT], ids=["", "and then closed"])
@pytest.mark.parametrize("take", [Path.unlink, replace, move, plant_fifo, plant_link, plant_directory])
def test_a_log_that_is_taken_away_has_a_gap_and_goes_on(
    tmp_path: Path, log: OutputLog, take: Callable[[Path], None], before: int
) -> None:
    feed(log, b"a" * before)
    take(tmp_path / f"job_{ID}.log")
    feed(log, b"b" * 10)
    feed(log, b"c" * 10, Source.STDERR)
    closed = (".0",) if before == SEGMENT else ()
    assert gaps(tmp_path, *closed) == [(0, before)]
    assert (log.size, log.lost, log.cut, log.failing) == (before + 20, before, before, "")
    assert segment_of(tmp_path, log, before // SEGMENT, runs=True)[before % SEGMENT :] == b"b" * 10 + b"c" * 10
    assert not (tmp_path / "secret").exists() or (tmp_path / "secret").read_bytes() == b"do not touch"


def test_a_directory_with_something_in_it_is_left_alone_until_the_next_segment(
    tmp_path: Path, log: OutputLog
) -> None:
    feed(log, b"a" * 10)
    (tmp_path / f"job_{ID}.log").unlink()
    (tmp_path / f"job_{ID}.log" / "something").mkdir(parents=True)
    feed(log, b"b" * (SEGMENT - 10))
    assert (log.lost, log.failing) == (SEGMENT, "EISDIR")
    feed(log, b"c")
    assert (log.lost, log.failing) == (SEGMENT, "")
    assert segment_of(tmp_path, log, 1, runs=True) == b"c"
    assert (tmp_path / f"job_{ID}.log.0" / "something").is_dir()


def test_a_log_that_is_cut_while_nobody_is_there_has_a_gap(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"a" * 100)
    os.truncate(tmp_path / f"job_{ID}.log", 40)
    again = open_log(tmp_path)
    assert again.size == 100
    feed(again, b"b")
    again.close()
    assert index(tmp_path) == [(0, 40, 1), (40, 60, LOST), (100, 1, 1)]
    assert (again.lost, again.cut) == (60, 60)


@pytest.mark.parametrize("left", [4, 10, 12, 15, 16])
def test_a_gap_that_is_cut_as_well_is_counted_once(tmp_path: Path, log: OutputLog, left: int) -> None:
    feed(log, b"a" * 10)
    with no_room_beyond(10):
        feed(log, b"x" * 5)
    feed(log, b"b" * 2)
    os.truncate(tmp_path / f"job_{ID}.log", left)
    feed(log, b"c")
    assert log.lost == sum(length for _, length in gaps(tmp_path)) == 5 + log.cut
    assert log.cut == 17 - left - max(0, 15 - max(left, 10))


def test_a_gap_behind_what_was_written_is_no_cut(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"a" * 10)
    with no_room_beyond(10):
        feed(log, b"x" * 5)
    feed(log, b"b")
    again = open_log(tmp_path)
    feed(again, b"c")
    again.close()
    # Whether the last two are one record is a matter of time.
    assert index(tmp_path)[:2] == [(0, 10, 1), (10, 5, LOST)]
    assert gaps(tmp_path) == [(10, 5)]


def test_a_bound_on_what_is_read_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x" * 100)
    directory = os.open(tmp_path, os.O_RDONLY)
    assert beneath.read_regular(directory, "small", 1 << 60) == b"x" * 100
    assert beneath.read_regular(directory, "small", 7) == b"x" * 7
    os.close(directory)

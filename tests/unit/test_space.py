"""Whose output gives way when all of it together is too much, on real logs of running jobs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker.jobs import Source
from jobworker.supervisor.output import OutputLog
from jobworker.supervisor.space import Space

SEGMENT = 1 << 16
IDS = ("k7f3-9m2q-x4tz-b1cd", "k7f3-9m2q-x4tz-b1ce")


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[list[OutputLog]]:
    opened = []
    for job_id in IDS:
        (tmp_path / job_id).mkdir()
        opened.append(OutputLog(os.open(tmp_path / job_id, os.O_RDONLY | os.O_DIRECTORY), job_id, SEGMENT))
    yield opened
    for log in opened:
        log.close()


def write(log: OutputLog, data: bytes, source: Source = Source.STDOUT) -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    os.write(writing, data)
    with contextlib.suppress(BlockingIOError):
        while log.pump(reading, source):
            pass
    os.close(writing)
    os.close(reading)


def on_disk(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_who_has_most_loses_first(logs: list[OutputLog]) -> None:
    space = Space(8 * SEGMENT, 0)
    small, large = logs
    write(small, b"x" * SEGMENT)
    write(small, b"x")
    space.grew(IDS[0], small)
    for _ in range(20):
        write(large, b"x" * SEGMENT)
        space.grew(IDS[1], large)
    assert (small.closed_segments, large.size) == (1, 20 * SEGMENT)
    assert 2 <= large.closed_segments <= 5


def test_a_log_that_has_closed_a_segment_says_so_once(logs: list[OutputLog]) -> None:
    space = Space(0, 0)
    told = []
    for data in (b"x", b"x" * (SEGMENT - 1), b"x", b"x"):
        write(logs[0], data)
        told.append(space.grew(IDS[0], logs[0]))
    assert told == [False, False, True, False]


def test_an_index_counts_as_well(tmp_path: Path, logs: list[OutputLog]) -> None:
    """Single bytes from two sources by turns make an index that is larger than their log."""
    total = 20 * SEGMENT
    space = Space(total, 0)
    spiteful, flood = logs
    for _ in range(17):
        write(flood, b"x" * SEGMENT)
        space.grew(IDS[1], flood)
    closed = flood.closed_segments
    for number in range(10_000):
        write(spiteful, b"x", Source.STDOUT if number % 2 else Source.STDERR)
        space.grew(IDS[0], spiteful)
        assert number % 500 or on_disk(tmp_path) <= total
    assert (tmp_path / IDS[0] / f"job_{IDS[0]}.idx").stat().st_size > 3 * SEGMENT
    assert flood.closed_segments < closed


def test_neither_side_is_driven_out_of_its_half(logs: list[OutputLog]) -> None:
    said = []
    space = Space(16 * SEGMENT, 0)
    space.on_crowded(lambda: said.append(True))
    space.ended = 8 * SEGMENT
    for _ in range(40):
        write(logs[0], b"x" * SEGMENT)
        space.grew(IDS[0], logs[0])
    assert not said
    assert 5 <= logs[0].closed_segments <= 7
    space.ended += 1
    space.grew(IDS[0], logs[0])
    assert said
    assert space.is_crowded


def test_what_can_t_be_removed_ends_nobody_s_bounds(tmp_path: Path, logs: list[OutputLog]) -> None:
    """Neither that of the job that has it, nor where that has nothing else, that of the others."""
    total = 12 * SEGMENT
    space = Space(total, 0)
    stuck, other = logs
    for _ in range(4):
        write(stuck, b"x" * SEGMENT)
        space.grew(IDS[0], stuck)
    for number in range(3):
        segment = tmp_path / IDS[0] / f"job_{IDS[0]}.log.{number}"
        segment.unlink()
        segment.mkdir()
    for log, job_id in ((stuck, IDS[0]), (other, IDS[1])):
        for _ in range(20):
            write(log, b"x" * SEGMENT)
            space.grew(job_id, log)
            assert on_disk(tmp_path) <= total
    assert other.closed_segments > 1


def test_what_is_being_removed_is_there_until_it_is_not(logs: list[OutputLog]) -> None:
    space = Space(16 * SEGMENT, 0)
    space.leaving = 12 * SEGMENT
    for _ in range(10):
        write(logs[0], b"x" * SEGMENT)
        space.grew(IDS[0], logs[0])
    few, space.leaving = logs[0].closed_segments, 0
    for _ in range(10):
        write(logs[0], b"x" * SEGMENT)
        space.grew(IDS[0], logs[0])
    assert few <= 3
    assert logs[0].closed_segments >= 10
    space.ends(IDS[0])
    space.ended = 15 * SEGMENT
    assert not space.is_crowded

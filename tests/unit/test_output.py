"""The log of a job: segments to the byte, the index beside them, and what happens when it can't be written."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker.errors import OutputDropped
from jobworker.jobs import JobRecord, Source, State
from jobworker.supervisor.output import INDEX_RECORD, OutputLog, open_segment

ID = "k7f3-9m2q-x4tz-b1cd"
SEGMENT = 1 << 20


def open_log(path: Path) -> OutputLog:
    return OutputLog(os.open(path, os.O_RDONLY | os.O_DIRECTORY), ID, SEGMENT)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[OutputLog]:
    opened = open_log(tmp_path)
    yield opened
    opened.close()


def feed(log: OutputLog, data: bytes, source: Source = Source.STDOUT) -> None:
    """Write through a pipe, as a job does, and pump until it is empty."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    while data:
        data = data[os.write(writing, data[: 1 << 16]) :]
        log.pump(reading, source)
    os.close(writing)
    while log.pump(reading, source):
        pass
    os.close(reading)


def record_of(log: OutputLog) -> JobRecord:
    return JobRecord(
        job_id=ID,
        principal="",
        command="",
        args=(),
        env_names=(),
        labels=(),
        workdir="",
        timeout_ms=0,
        uid=0,
        pid=0,
        state=State.ENDED,
        created_ns=0,
        segment_bytes=SEGMENT,
        log_bytes=log.size,
    )


def index(path: Path, suffix: str = "") -> list[tuple[int, int, int]]:
    data = (path / f"job_{ID}.idx{suffix}").read_bytes()
    return [fields[:3] for fields in INDEX_RECORD.iter_unpack(data)]


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


def test_what_can_t_be_written_is_counted_and_does_not_block(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"kept")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, old[1]))
    try:
        feed(log, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (log.size, log.lost) == (4, 100_000)
    feed(log, b" and more")
    assert (tmp_path / f"job_{ID}.log").read_bytes() == b"kept and more"


def plant(path: Path, what: str) -> None:
    """Put something at a file's place that is not the file."""
    target = path.with_name("secret")
    target.write_bytes(b"do not touch")
    if what == "symlink":
        path.symlink_to(target)
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.parametrize("what", ["symlink", "fifo", "directory"])
@pytest.mark.parametrize("kind", ["log", "idx"])
def test_a_planted_file_is_never_written(tmp_path: Path, what: str, kind: str) -> None:
    plant(tmp_path / f"job_{ID}.{kind}", what)
    with pytest.raises(OSError, match=f"job_{ID}.{kind}"):
        open_log(tmp_path)
    assert (tmp_path / "secret").read_bytes() == b"do not touch"


@pytest.mark.parametrize("what", ["symlink", "fifo", "directory"])
def test_a_planted_file_is_never_read(tmp_path: Path, log: OutputLog, what: str) -> None:
    feed(log, b"a")
    plant(tmp_path / f"job_{ID}.log.7", what)
    directory = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OutputDropped):
        open_segment(directory, record_of(log), 7)
    os.close(directory)


def test_reading_needs_no_path(tmp_path: Path, log: OutputLog) -> None:
    feed(log, b"a" * SEGMENT + b"b")
    directory = os.open(tmp_path, os.O_RDONLY)
    for segment, content in ((0, b"a" * SEGMENT), (1, b"b")):
        data_fd, index_fd = open_segment(directory, record_of(log), segment)
        assert os.pread(data_fd, SEGMENT, 0) == content
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(data_fd, b"x")
        os.close(data_fd)
        os.close(index_fd)
    os.close(directory)

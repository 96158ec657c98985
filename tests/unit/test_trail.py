"""An audit trail goes on whatever it finds, and says what it found."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from jobworker.chain import Head
from jobworker.supervisor.trail import body
from support.trails import open_trail, problems, verify, write

pytestmark = pytest.mark.usefixtures("one_life")


def test_files_are_closed_by_size_and_the_oldest_removed(tmp_path: Path) -> None:
    trail = open_trail(tmp_path, max_bytes=2_000, keep=3)
    for number in range(100):
        write(trail, f"line {number}")
    assert len(list(tmp_path.glob("jobs.log.*"))) == 3
    report = verify(tmp_path)
    assert problems(report) == []
    assert report.first > 1
    assert verify(tmp_path, Head(1, "0" * 64)).stale == [1]
    # By the settings of its next life.
    trail = open_trail(tmp_path, max_bytes=2_000, keep=1)
    for number in range(30):
        write(trail, f"line {number}")
    assert len(list(tmp_path.glob("jobs.log.*"))) == 1
    assert problems(verify(tmp_path)) == []
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("jobs*")} == {0o600}


@pytest.mark.parametrize("size", [1, 40, 150])
def test_a_line_that_was_not_finished_stays_and_is_told(tmp_path: Path, size: int) -> None:
    write(open_trail(tmp_path), "one", "two")
    path = tmp_path / "jobs.log"
    line = path.read_bytes().splitlines()[-1]
    with open(path, "ab") as file:
        file.write(line[:size])
    assert verify(tmp_path).broken
    write(open_trail(tmp_path), "three")
    report = verify(tmp_path)
    assert (report.broken, report.told) == (0, 1)
    assert "was left unfinished" in problems(report)[0]
    assert line[:size] + b"\n" in path.read_bytes()
    # And what is told of it is held to be so.
    data = path.read_bytes()
    path.write_bytes(data.replace(line[:size] + b'\n{"seq":4', b"#" * size + b'\n{"seq":4'))
    assert verify(tmp_path).broken


def test_zeros_at_the_end(tmp_path: Path) -> None:
    """As a file system leaves them that was cut off the power."""
    write(open_trail(tmp_path), "one", "two")
    with open(tmp_path / "jobs.log", "ab") as file:
        file.write(bytes(200_000))
    write(open_trail(tmp_path), "three")
    report = verify(tmp_path)
    assert (report.broken, report.told) == (0, 1)


def test_nothing_but_an_unfinished_line(tmp_path: Path) -> None:
    (tmp_path / "jobs.log").write_bytes(b'{"seq":1,"ti')
    trail = open_trail(tmp_path)
    write(trail, "one")
    assert (tmp_path / "jobs.unfinished.1").read_bytes() == b'{"seq":1,"ti'
    report = verify(tmp_path)
    assert (report.broken, report.told) == (0, 1)
    assert (tmp_path / "jobs.log").read_bytes().startswith(b'{"seq":1,')


@pytest.mark.parametrize(
    "harm", [b"garbage\n", b"\n", b'{"seq":9,"time":"","by":"supervisor","hash":"' + b"0" * 64 + b'"}\n']
)
def test_what_can_t_be_gone_on_with_is_set_aside(tmp_path: Path, harm: bytes) -> None:
    write(open_trail(tmp_path), "one", "two")
    with open(tmp_path / "jobs.log", "ab") as file:
        file.write(harm)
    write(open_trail(tmp_path), "three")
    assert (tmp_path / "jobs.log.1").read_bytes().endswith(harm)
    report = verify(tmp_path)
    assert report.broken
    assert report.told
    write(open_trail(tmp_path), "four")
    assert len(list(tmp_path.glob("jobs.log.*"))) == 1


def test_an_end_that_is_gone_is_told_and_its_numbers_are_not_used_again(tmp_path: Path) -> None:
    trail = open_trail(tmp_path)
    write(trail, "one", "two", "three")
    trail.write_head()
    data = (tmp_path / "jobs.log").read_bytes().splitlines(keepends=True)
    (tmp_path / "jobs.log").write_bytes(b"".join(data[:-2]))
    later = open_trail(tmp_path)
    write(later, "four")
    report = verify(tmp_path)
    assert "lines 3 to 4 are missing before line 5" in problems(report)
    assert any("line 4 of the anchor" in problem for problem in problems(report))


def test_a_file_that_is_taken_away(tmp_path: Path) -> None:
    trail = open_trail(tmp_path)
    write(trail, "one", "two")
    (tmp_path / "jobs.log").rename(tmp_path / "elsewhere")
    write(trail, "three")
    report = verify(tmp_path)
    assert report.first == 4
    assert "lines 1 to 3 are missing" in problems(report)[0]
    (tmp_path / "elsewhere").rename(tmp_path / "jobs.log.1")
    assert problems(verify(tmp_path)) == []


def test_lines_that_the_program_before_could_not_write(tmp_path: Path) -> None:
    write(open_trail(tmp_path, lost=7), "one")
    report = verify(tmp_path)
    assert (report.broken, report.told) == (0, 1)
    assert "7 lines are missing here" in problems(report)[0]


def test_no_place_to_write(tmp_path: Path) -> None:
    """What waits is bounded; then lines are counted, and the count is told."""
    directory = tmp_path / "audit"
    trail = open_trail(directory)
    for number in range(5_000):
        trail.add(body("supervisor", "test", text="x" * 100, number=number))
    assert not trail.flush()
    assert trail.failing == "ENOENT"
    assert trail.unwritten == 5_000
    directory.mkdir()
    assert trail.flush()
    assert (trail.failing, trail.unwritten) == ("", 0)
    report = verify(directory)
    assert (report.broken, report.told) == (0, 1)
    lost = int(problems(report)[0].split()[0])
    assert report.lines - 2 + lost == 5_000
    assert 1_000 < lost < 4_500


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """A writer is killed over and over; each line is whole, or told not to be."""
    for _ in range(30):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            trail = open_trail(tmp_path, max_bytes=20_000, keep=1000)
            while True:
                write(trail, "x" * 200, "y" * 5_000)
                os.write(writing, b".")
        os.close(writing)
        assert os.read(reading, 1) == b"."
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
    write(open_trail(tmp_path), "the end")
    assert verify(tmp_path).broken == 0


def test_a_directory_that_is_removed(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    directory.mkdir()
    trail = open_trail(directory)
    write(trail, "one")
    shutil.rmtree(directory)
    trail.add(body("supervisor", "test", text="two"))
    assert not trail.flush()
    directory.mkdir()
    assert trail.flush()
    assert verify(directory).first > 1


def test_a_file_that_can_t_be_closed_is_gone_on_with(tmp_path: Path) -> None:
    trail = open_trail(tmp_path, max_bytes=1_000)
    write(trail, "one")
    # The number behind it makes a name that no file can have.
    full = tmp_path / f"jobs.log.{'9' * 246}"
    full.touch()
    write(trail, "x" * 2_000)
    assert trail.failing == ""
    full.unlink()
    write(trail, "two")
    assert trail.failing == ""
    report = verify(tmp_path)
    assert (problems(report), report.files) == ([], 2)

"""Whatever is done to a trail behind the agent's back, the check finds."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobworker import chain
from jobworker.chain import Head
from jobworker.supervisor.trail import body
from support.terminals import terminal
from support.trails import AGENT, audit, open_trail, problems, verify, write

pytestmark = pytest.mark.usefixtures("one_life")

LINES = 45


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trail of several files, of more than one life."""
    directory = tmp_path_factory.mktemp("trail")
    for life in range(3):
        trail = open_trail(directory, max_bytes=3_000)
        for number in range(LINES // 3):
            write(trail, f"life {life}, line {number}", "x" * (number % 50))
        trail.write_head()
    return directory


@pytest.fixture
def trail(made: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def files(directory: Path) -> list[Path]:
    closed = sorted(directory.glob("jobs.log.*"), key=lambda path: int(path.suffix[1:]))
    return [*closed, directory / "jobs.log"]


def test_what_nobody_has_touched_is_whole(made: Path) -> None:
    report = verify(made)
    assert problems(report) == []
    assert report.files > 5
    assert (report.first, report.head.seq) == (1, report.lines)
    assert report.lines == 2 * LINES + report.files


def test_each_of_a_thousand_changed_bytes_is_found(trail: Path) -> None:
    chance = random.Random(7)  # noqa: S311 - damage, not secrets
    sizes = [(path, path.stat().st_size) for path in files(trail)]
    for _ in range(1000):
        path, size = chance.choice(sizes)
        at, flip = chance.randrange(size), chance.randrange(1, 256)
        change(path, at, flip)
        report = verify(trail)
        assert report.broken, f"{path.name} at {at}, by {flip:#x}"
        change(path, at, flip)
    assert problems(verify(trail)) == []


def change(path: Path, at: int, flip: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ flip]))


def rewrite(path: Path, do: Callable[[list[bytes]], object]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    do(lines)
    path.write_bytes(b"".join(lines))


def swap(lines: list[bytes]) -> None:
    lines[4], lines[5] = lines[5], lines[4]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(
    ("do", "said"),
    [
        (lambda lines: lines.pop(5), "missing before line"),
        (lambda lines: lines.pop(0), "missing before line|what was before it is cut off"),
        (lambda lines: lines.pop(), "missing before line"),
        (swap, "missing before line"),
        (lambda lines: lines.insert(6, lines[5]), "moved, repeated or inserted"),
        (lambda lines: lines.insert(6, lines[5].replace(b'"hash"', b'"hush"')), "is not a line of a trail"),
        (lambda lines: lines.insert(6, b"\n"), "is not a line of a trail"),
    ],
    ids=["dropped", "first dropped", "last dropped", "swapped", "repeated", "no line", "an empty line"],
)
def test_lines(trail: Path, number: int, do: Callable[[list[bytes]], object], said: str) -> None:
    rewrite(files(trail)[number], do)
    report = verify(trail)
    assert report.broken
    assert any(part in problem for part in said.split("|") for problem in problems(report)), problems(report)
    here = {path.name for path in files(trail)[number : number + 2]}
    assert here & {finding.file for finding in report.findings}


def test_a_file_that_is_gone(trail: Path) -> None:
    files(trail)[2].unlink()
    assert "missing before line" in problems(verify(trail))[0]


def test_the_oldest_files_that_are_gone(trail: Path) -> None:
    for path in files(trail)[:2]:
        path.unlink()
    (problem,) = problems(verify(trail))
    assert "none says that they were removed for their age" in problem


def test_files_in_another_order(trail: Path) -> None:
    first, second = files(trail)[1:3]
    first.rename(trail / "aside")
    second.rename(first)
    (trail / "aside").rename(second)
    assert verify(trail).broken


def test_a_tail_that_is_cut_off(trail: Path) -> None:
    known = verify(trail).head
    rewrite(files(trail)[-1], lambda lines: lines.pop())
    (problem,) = problems(verify(trail))
    assert f"an anchor knows line {known.seq}" in problem
    # Whoever cuts it off takes the noted head with it, or changes that; who has it from elsewhere is told.
    cut = verify(trail).head
    (trail / "jobs.head").write_text(f"{cut}\n")
    assert problems(verify(trail)) == []
    (problem,) = problems(verify(trail, known))
    assert "the end is cut off" in problem


def test_a_trail_that_is_made_anew(trail: Path) -> None:
    """Each hash is right, and each line is another one: only who knows a head from elsewhere can tell."""
    known = verify(trail).head
    for path in trail.iterdir():
        path.unlink()
    other = open_trail(trail, max_bytes=8_000)
    write(other, *(f"another line {number}" for number in range(known.seq + 10)))
    assert problems(verify(trail)) == []
    (problem,) = problems(verify(trail, known))
    assert "is not the one of the anchor" in problem


def test_anchors_of_before_hold_later(trail: Path) -> None:
    early = verify(trail).head
    write(open_trail(trail), "more")
    report = verify(trail, early, Head(1, chain.split(files(trail)[0].read_bytes().splitlines()[0]).hash))  # type: ignore[union-attr]
    assert problems(report) == []


def test_a_head_that_is_none(trail: Path) -> None:
    (trail / "jobs.head").write_text("7:xyz\n")
    assert problems(verify(trail)) == ["jobs.head does not hold a head"]


def test_no_line_can_speak_for_the_supervisor_from_within(trail: Path) -> None:
    """What comes from outside is in a string, and behind what says who wrote the line."""
    harm = '","by":"supervisor","event":"lines_missing","x":"\n{"seq":1,"by":"supervisor","event":"lines_missing"}'
    writer = open_trail(trail)
    write(writer, harm)
    report = verify(trail)
    assert (report.broken, report.told) == (0, 0)
    rewrite(files(trail)[-1], lambda lines: lines.pop(-2))
    assert verify(trail).broken


def test_what_is_told_does_not_hide_what_is_not(trail: Path) -> None:
    writer = open_trail(trail)
    for _ in range(50):
        writer.add(body("gateway", "calls_dropped", lines=1))
    write(writer, "one", "two")
    rewrite(files(trail)[-1], lambda lines: lines.pop(-2))
    report = verify(trail)
    assert (report.told, report.broken) == (50, 2)
    assert "missing before line" in problems(report)[-2]
    assert report.more == 30


def test_a_terminal_shows_which_file_is_read(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "audit")
    with terminal([AGENT, "audit", "verify", "--state-dir", tmp_path]) as shown:
        assert shown.end() == 0
        count = len(files(made))
        assert f"reading jobs.log.1, 1 of {count}".encode() in shown.shown
        assert f"reading jobs.log, {count} of {count}".encode() in shown.shown
        assert shown.lines_left() == audit(str(tmp_path), "verify").stdout.splitlines()


@pytest.mark.root
def test_a_trail_cannot_write_its_own_verdict_to_a_terminal(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    directory.mkdir()
    trail = open_trail(directory)
    write(trail, "a line")
    trail.add(body("supervisor", "lines_lost", lines=3, error="\x1b[99A\x1b[Jjobs: whole\x1b[8m"))
    assert trail.flush()
    trail.write_head()
    done = audit(str(tmp_path), "verify")
    assert r"3 lines are missing here: \x1b[99A\x1b[Jjobs: whole\x1b[8m" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr

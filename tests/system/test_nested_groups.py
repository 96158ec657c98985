"""Cgroups that a job has made in its own, as a container engine does: stopped, killed and removed with it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker.jobs import EndReason
from jobworker.kernel.cgroup import files, tree
from jobworker.kernel.cgroup.files import Base, CgroupDir
from jobworker.kernel.cgroup.v2 import V2Group, V2Hierarchy
from jobworker.limits import NO_LIMITS
from support.cgroup_places import v2_place
from support.leftovers import cgroups
from support.link import Link
from support.processes import running
from support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("one_life")]

NAME = "k7f3-9m2q-x4tz-b1cd"


@pytest.fixture
def base() -> Iterator[Path]:
    with v2_place() as path:
        yield path


@pytest.fixture
def group(base: Path) -> V2Group:
    top, place = (CgroupDir.open(str(path)) for path in (base.parent, base))
    return V2Hierarchy("", Base(lambda: place), top).create(NAME, NO_LIMITS)


def sleep_in(path: Path) -> subprocess.Popen[bytes]:
    path.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(["/bin/sleep", "1000"])
    (path / "cgroup.procs").write_text(str(process.pid))
    return process


@pytest.mark.parametrize("how", ["signal", "kill", "freeze"])
def test_processes_in_them_are_the_group_s(base: Path, group: V2Group, how: str) -> None:
    places = (base / NAME / "a" / "b", base / NAME / "c", base / NAME)
    processes = [sleep_in(path) for path in places]
    try:
        assert group.populated()
        if how == "signal":
            group.signal_all(signal.SIGKILL)
        elif how == "kill":
            group.kill()
        else:
            tree._freeze_kill_thaw(group._dir)
        assert [process.wait(10) for process in processes] == [-signal.SIGKILL] * 3
        until(group.populated, False)
        group.remove()
        assert not (base / NAME).exists()
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_they_stay_as_long_as_one_has_a_process(base: Path, group: V2Group) -> None:
    with sleep_in(base / NAME / "a" / "b") as process:
        try:
            with pytest.raises(OSError, match="busy"):
                group.remove()
        finally:
            process.kill()
    until(group.populated, False)
    group.remove()
    assert not (base / NAME).exists()


def test_what_is_mounted_on_one_is_left_alone(base: Path, group: V2Group, tmp_path: Path) -> None:
    odd, other = base / NAME / "odd", tmp_path / "other"
    (other / "empty").mkdir(parents=True)
    odd.mkdir()
    with running(["/bin/sleep", "1000"]) as outside:
        (other / "cgroup.procs").write_text(f"{outside.pid}\n")
        subprocess.run(["mount", "--bind", other, odd], check=True)
        try:
            group.signal_all(signal.SIGKILL)
            with pytest.raises(OSError, match="busy"):
                group.remove()
        finally:
            subprocess.run(["umount", odd], check=True)
        assert outside.poll() is None
    assert (other / "empty").exists()
    group.remove()
    assert not (base / NAME).exists()


def test_a_crowd_of_them_holds_up_nobody(base: Path, group: V2Group, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        (base / NAME / f"a{number}" / "b").mkdir(parents=True)
    monkeypatch.setattr(files, "_MOST_BELOW", 12)
    with pytest.raises(OSError, match="busy"):
        group.remove()
    monkeypatch.undo()
    group.remove()
    assert not (base / NAME).exists()


def test_a_job_goes_with_all_of_them(link: Link) -> None:
    # In each hierarchy that there is, as a job of root's may that sees them.
    job = link.start("/bin/sh", "-c", "sleep 1000 & sleep 1000")
    for path in cgroups(job.job_id):
        below = Path(path, "a", "b")
        below.mkdir(parents=True)
        (below / "cgroup.procs").write_text(str(job.pid))
    assert link.stop(job.job_id).end_reason is EndReason.STOPPED
    until(lambda: cgroups(job.job_id), [])

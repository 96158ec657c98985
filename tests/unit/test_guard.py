"""The guard of limits where what it stands on is not as usual; files stand in for those of cgroups."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from jobworker.kernel.cgroup.base import Group
from jobworker.kernel.cgroup.files import Base, CgroupDir
from jobworker.kernel.cgroup.v1 import V1Hierarchy
from jobworker.kernel.inotify import Inotify
from jobworker.limits import Limits
from jobworker.supervisor.guard import LimitGuard
from jobworker.supervisor.job import Job
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.reclaim import Reclaims

ID = "k7f3-9m2q-x4tz-b1cd"


def together(path: Path) -> Group:
    """A job's group in a hierarchy that has two controllers at one place, with its limit changed already."""
    (path / ID).mkdir()
    (path / ID).chmod(0o777)
    for name, text in (("cgroup.events", "populated 1\n"), ("pids.max", "7")):
        (path / ID / name).write_text(text)
        (path / ID / name).chmod(0o666)
    holder, pids, devices = (Base(lambda: CgroupDir.open(str(path))) for _ in range(3))
    return V1Hierarchy("hybrid", "", holder, {"pids": pids, "devices": devices}, ()).adopt(ID)


def job_of(group: Group, loop: Loop) -> Job:
    """As much of a job as is guarded; the loop ends when its limits have been set again."""
    record = SimpleNamespace(job_id=ID, limits=())
    told = {"limits_changed": lambda _, restored: loop.stop()}  # noqa: ARG005 - as it is called
    return cast("Job", SimpleNamespace(record=record, group=group, limits=Limits(pids=20), granted=(), **told))


@pytest.mark.usefixtures("one_life")
def test_controllers_that_are_mounted_together(tmp_path: Path) -> None:
    loop, pids = Loop(), tmp_path / ID / "pids.max"
    guard = LimitGuard(loop, Log("error"), Reclaims(loop))
    guard.begin(job_of(together(tmp_path), loop), suspect=False)
    pids.write_text("7")
    loop.run()
    assert pids.read_text() == "20"
    guard.end(ID)
    pids.write_text("7")
    loop.call_after(0.05, loop.stop)
    loop.run()
    assert pids.read_text() == "7"


@pytest.mark.usefixtures("one_life")
def test_what_the_kernel_tells_of_itself_is_passed_over(tmp_path: Path) -> None:
    loop, pids = Loop(), tmp_path / ID / "pids.max"
    guard = LimitGuard(loop, Log("error"), Reclaims(loop))
    guard.begin(job_of(together(tmp_path), loop), suspect=False)
    for name in ("cgroup.events", "memory.events", "memory.events.local", "pids.events"):
        (tmp_path / ID / name).write_text("x")
    loop.call_after(0.05, loop.stop)
    loop.run()
    assert pids.read_text() == "7"
    (tmp_path / ID / "memory.limit_in_bytes").write_text("x")
    loop.run()
    assert pids.read_text() == "20"


@pytest.mark.root
def test_a_host_that_has_no_more_room_for_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    group = together(tmp_path)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            # A user of whom nobody else is.
            os.setresuid(1_777_777_777, 1_777_777_777, 1_777_777_777)
            use_up = []
            try:
                while True:
                    use_up.append(Inotify())
            except OSError:
                pass
            loop = Loop()
            guard = LimitGuard(loop, Log("info"), Reclaims(loop))
            guard.begin(job_of(group, loop), suspect=True)
            loop.run()
            guard.end(ID)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    # What nobody was there to see is set right all the same.
    assert (tmp_path / ID / "pids.max").read_text() == "20"
    assert capfd.readouterr().err.count("limits are not guarded") == 1
    group.close()

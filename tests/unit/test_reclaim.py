"""From how many jobs memory is taken back at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from jobworker.errors import CapExceeded
from jobworker.kernel.cgroup.files import Base, CgroupDir
from jobworker.kernel.cgroup.v1 import V1Hierarchy
from jobworker.limits import Limits
from jobworker.supervisor.job import Job
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.reclaim import Reclaims

LIMITS = Limits(memory_bytes=4096)


def job(directory: Path, number: int, principal: str) -> Job:
    """As much of a job as has memory: files stand in for those of its cgroup."""
    name = f"job-{number}"
    (directory / name).mkdir(parents=True)
    for file, text in (
        ("cgroup.events", "populated 0\n"),
        ("memory.limit_in_bytes", "8192\n"),
        ("cgroup.procs", ""),
    ):
        (directory / name / file).write_text(text)
    holder, memory, devices = (Base(lambda: CgroupDir.open(str(directory))) for _ in range(3))
    group = V1Hierarchy("hybrid", "", holder, {"memory": memory, "devices": devices}, ()).adopt(name)
    return cast("Job", SimpleNamespace(record=SimpleNamespace(job_id=name, principal=principal), group=group))


@pytest.mark.usefixtures("one_life")
def test_one_principal_leaves_others_room(tmp_path: Path) -> None:
    loop, came = Loop(), list[str]()
    reclaims = Reclaims(loop)

    def take(number: int, principal: str) -> None:
        reclaims.take(job(tmp_path, number, principal), LIMITS, lambda: came.append(principal))

    for number in range(8):
        take(number, "a")
    with pytest.raises(CapExceeded, match="of yours that memory is taken back from may be 8 at most"):
        take(8, "a")
    for number in range(10, 66):
        take(number, f"b{number}")
    with pytest.raises(CapExceeded, match="jobs that memory is taken back from may be 64 at most"):
        take(70, "c")
    reclaims.when_over(loop.stop)
    loop.run()
    assert (len(came), came.count("a")) == (64, 8)
    assert (tmp_path / "job-0" / "memory.limit_in_bytes").read_text() == "4096\n"
    # They have their places back.
    take(9, "a")
    assert reclaims.is_under_way("job-9")
    reclaims.when_over(loop.stop, "job-9")
    loop.run()

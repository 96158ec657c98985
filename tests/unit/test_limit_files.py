"""What is made of the kernel's files of limits, of those that are missing too; plain files stand in for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobworker.kernel.cgroup.base import Hierarchy
from jobworker.kernel.cgroup.files import Base, CgroupDir
from jobworker.kernel.cgroup.v1 import V1Hierarchy
from jobworker.kernel.cgroup.v2 import V2Hierarchy

ID = "k7f3-9m2q-x4tz-b1cd"
V1 = {"cpu", "cpuset", "memory", "pids", "blkio"}


def written(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in ({"cgroup.procs": "", "cgroup.events": "populated 1\n"} | files).items():
        (directory / name).write_text(text)


def base(path: Path) -> Base:
    return Base(lambda: CgroupDir.open(str(path)))


def v1(path: Path) -> V1Hierarchy:
    written(path / "holder", {})
    bases = {name: base(path / name) for name in V1 if (path / name).exists()}
    return V1Hierarchy("hybrid", "", base(path / "holder"), bases, ())


def v2(path: Path, controllers: str = "cpu cpuset io memory pids\n") -> V2Hierarchy:
    written(path, {"cgroup.subtree_control": controllers})
    return V2Hierarchy("", base(path), CgroupDir.open(str(path)))


def cpus(path: Path, mode: str) -> tuple[Hierarchy, Path]:
    """A hierarchy with a job that has asked for CPU 1 where there is CPU 0 alone, and the file of what it got."""
    if mode == "v2":
        written(path, {"cpuset.cpus": "\n", "cpuset.cpus.effective": "0\n"})
        written(path / ID, {"cpuset.cpus": "1\n", "cpuset.cpus.effective": "0\n"})
        return v2(path), path / ID / "cpuset.cpus.effective"
    written(path / "cpuset", {"cpuset.cpus": "0-1\n", "cpuset.effective_cpus": "0\n"})
    written(path / "cpuset" / ID, {"cpuset.cpus": "1\n", "cpuset.effective_cpus": "0\n"})
    written(path / "holder" / ID, {})
    return v1(path), path / "cpuset" / ID / "cpuset.effective_cpus"


@pytest.mark.parametrize("mode", ["v1", "v2"])
def test_cpus_are_those_that_were_granted(tmp_path: Path, mode: str) -> None:
    hierarchy, granted = cpus(tmp_path, mode)
    assert hierarchy.cpus() == "0"
    group = hierarchy.adopt(ID)
    assert group.limits(None).cpuset == "0"
    granted.write_text("0-1\n")
    assert group.limits(None).cpuset == "0-1"
    group.close()


def test_cpus_that_nobody_asked_for_are_no_limit(tmp_path: Path) -> None:
    hierarchy, _ = cpus(tmp_path, "v2")
    (tmp_path / ID / "cpuset.cpus").write_text("\n")
    group = hierarchy.adopt(ID)
    assert group.limits(None).cpuset is None
    group.close()

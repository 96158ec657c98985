"""What is made of the kernel's files of limits, of those that are missing too; plain files stand in for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobworker.kernel import disk
from jobworker.kernel.cgroup.base import Hierarchy
from jobworker.kernel.cgroup.files import Base, CgroupDir
from jobworker.kernel.cgroup.v1 import V1Hierarchy
from jobworker.kernel.cgroup.v2 import V2Hierarchy
from jobworker.kernel.disk import Disk
from jobworker.limits import BY_NAME, NO_PROFILES, Enforcement, Limits
from jobworker.settings.schema import JobSettings
from jobworker.supervisor.limits import LimitRules

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


# Kernels that were built without a part.


def whole(path: Path, mode: str) -> Path:
    """All files that a kernel has, of the jobs' place and of one job's, whose pids.max is returned."""
    files = {
        "v1": {
            "cpu": {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000", "cpu.shares": "1024"},
            "cpuset": {"cpuset.effective_cpus": "0-1", "cpuset.cpus": "0-1"},
            "memory": {"memory.limit_in_bytes": "8192", "memory.memsw.limit_in_bytes": "8192"},
            "pids": {"pids.max": "20"},
            "blkio": {f"blkio.throttle.{name}_device": "8:0 4096" for name in RATES},
        },
        "v2": {
            "": {
                "cpu.max": "50000 100000",
                "cpu.weight": "100",
                "cpuset.cpus": "0-1",
                "cpuset.cpus.effective": "0-1",
                "memory.max": "8192",
                "memory.swap.max": "0",
                "pids.max": "20",
                "io.max": "8:0 rbps=4096 wbps=4096 riops=4096 wiops=4096",
            }
        },
    }[mode]
    for controller, texts in files.items():
        written(path / controller, texts)
        written(path / controller / ID, texts)
    written(path / "holder" / ID, {})
    return path / ("pids" if mode == "v1" else "") / ID / "pids.max"


RATES = ("read_bps", "write_bps", "read_iops", "write_iops")
MADE: dict[str, Callable[[Path], Hierarchy]] = {"v1": v1, "v2": v2}
MEMORY = {
    "v1": ("memory/{}/memory.limit_in_bytes", "memory/{}/memory.memsw.limit_in_bytes"),
    "v2": ("{}/memory.max", "{}/memory.swap.max"),
}
OF_IO = {"io_read", "io_write", "io_read_ops", "io_write_ops"}


@pytest.mark.parametrize(
    ("mode", "absent", "limits"),
    [
        ("v1", "cpu/cpu.cfs_quota_us", {"cpu"}),
        ("v1", "memory/memory.memsw.limit_in_bytes", {"swap"}),
        ("v1", "blkio/blkio.throttle.read_bps_device", {"io_read"}),
        ("v2", "cpu.max", {"cpu"}),
        ("v2", "memory.swap.max", {"swap"}),
        ("v2", "io.max", OF_IO),
    ],
)
def test_what_a_kernel_was_built_without(tmp_path: Path, mode: str, absent: str, limits: set[str]) -> None:
    whole(tmp_path, mode)
    assert lacking(MADE[mode](tmp_path)) == {}
    file = tmp_path / absent
    for path in (file, file.parent / ID / file.name):
        path.unlink()
    hierarchy = MADE[mode](tmp_path)
    reason = "does not account for swap" if limits == {"swap"} else f"was built without {file.name}"
    assert lacking(hierarchy) == dict.fromkeys(limits, f"the kernel {reason}")
    # The others are read all the same.
    group = hierarchy.adopt(ID)
    found = {name for name, _ in group.limits("8:0").given()}
    assert found == BY_NAME.keys() - limits
    group.usage()
    group.close()


def lacking(hierarchy: Hierarchy) -> dict[str, str]:
    return {each.limit: each.detail for each in hierarchy.support if each.enforcement is Enforcement.UNSUPPORTED}


@pytest.mark.parametrize(
    ("mode", "memory", "swap_by_then"),
    [
        # Before there is less memory, which would be swapped out.
        ("v2", 4096, "2048"),
        # Both together are at no time less than memory alone.
        ("v1", 4096, "8192"),
        ("v1", 16384, "18432"),
    ],
    ids=["v2", "v1, less", "v1, more"],
)
def test_the_order_of_memory_and_swap(tmp_path: Path, mode: str, memory: int, swap_by_then: str) -> None:
    whole(tmp_path, mode)
    of_memory, of_swap = (tmp_path / name.format(ID) for name in MEMORY[mode])
    # Nothing can be written to it, and what comes behind it is not.
    of_memory.unlink()
    of_memory.mkdir()
    group = MADE[mode](tmp_path).adopt(ID)
    with pytest.raises(IsADirectoryError):
        group.apply_memory(group.memory_dir, Limits(memory_bytes=memory, swap_bytes=2048))
    assert of_swap.read_text() == swap_by_then
    group.close()


@pytest.mark.parametrize("mode", ["v1", "v2"])
def test_a_group_that_is_gone_has_no_limits(tmp_path: Path, mode: str) -> None:
    pids = whole(tmp_path, mode)
    group = MADE[mode](tmp_path).adopt(ID)
    for path in pids.parent.iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError):
        group.limits(None)
    group.close()


@pytest.mark.parametrize(
    ("controllers", "late_writes", "told"),
    [
        ("io memory", "", ""),
        ("io memory", "with vfat no late ones", "with vfat no late ones"),
        ("io", "", "without the memory controller"),
        ("io", "with vfat no late ones", "without the memory controller"),
    ],
)
def test_writes_that_the_kernel_makes_later(tmp_path: Path, controllers: str, late_writes: str, told: str) -> None:
    whole(tmp_path, "v2")
    found = Disk("8:0", "sda", late_writes)
    rules = LimitRules(JobSettings(), v2(tmp_path, controllers), lambda: NO_PROFILES, lambda _: found)
    limits = Limits(io_read_bps=4096, io_write_bps=4096, io_write_ops=4096)
    statuses = {each.name: each for each in rules.status(rules.plan_change(limits, ""), limits)}
    assert statuses["io_read"].enforcement is Enforcement.ENFORCED
    for name in ("io_write", "io_write_ops"):
        detail = statuses[name].detail
        assert statuses[name].enforcement is (Enforcement.BEST_EFFORT if told else Enforcement.ENFORCED)
        assert detail.startswith(f"on sda; {told}") if told else detail == "on sda"


@pytest.mark.parametrize("mode", ["v1", "v2"])
def test_what_the_kernel_makes_of_it_is_told(tmp_path: Path, mode: str) -> None:
    whole(tmp_path, mode)
    rules = LimitRules(JobSettings(), MADE[mode](tmp_path), lambda: NO_PROFILES, disk.of_path)
    plan = rules.plan_change(Limits(cpu_millis=500, memory_bytes=(1 << 20) + 1, pids=20, cpuset="1"), "")
    assert plan.settable.memory_bytes == 1 << 20
    actual = Limits(cpu_millis=500, memory_bytes=1 << 20, pids=30, cpuset="0")
    told = {each.name: (each.value, each.enforcement) for each in rules.status(plan, actual)}
    assert told == {
        "cpu": ("50%", Enforcement.ENFORCED),
        "memory": ("1M", Enforcement.ENFORCED),
        "pids": ("30", Enforcement.BEST_EFFORT),
        "cpuset": ("0", Enforcement.BEST_EFFORT),
    }

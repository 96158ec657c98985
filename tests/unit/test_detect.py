"""Telling v1, v2 and hybrid hosts apart by what mountinfo says."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobworker.kernel.cgroup import detect

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
V1 = (
    "31 30 0:27 / /sys/fs/cgroup/systemd rw shared:5 - cgroup cgroup rw,xattr,name=systemd\n"
    "32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:6 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 30 0:29 / /sys/fs/cgroup/memory rw shared:7 - cgroup cgroup rw,memory\n"
    "34 30 0:30 / /sys/fs/cgroup/pids rw shared:8 - cgroup cgroup rw,pids\n"
)
UNIFIED = "35 30 0:31 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n"
OTHER = "23 1 8:1 / / rw - ext4 /dev/root rw,cpu\n36 23 0:4 / /proc rw - proc proc rw\n"


@pytest.mark.parametrize(
    ("text", "v2", "v1"),
    [
        (OTHER + V2, "/sys/fs/cgroup", {}),
        (
            OTHER + V1,
            None,
            {
                "cpu": "/sys/fs/cgroup/cpu,cpuacct",
                "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
                "memory": "/sys/fs/cgroup/memory",
                "pids": "/sys/fs/cgroup/pids",
            },
        ),
        (OTHER + UNIFIED, "/sys/fs/cgroup/unified", {}),
        (OTHER, None, {}),
    ],
)
def test_mounts(tmp_path: Path, text: str, v2: str | None, v1: dict[str, str]) -> None:
    (tmp_path / "mountinfo").write_text(text)
    assert detect.cgroup_mounts(str(tmp_path / "mountinfo")) == detect.Mounts(v2, v1)


def test_a_hybrid_host_has_both(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(OTHER + V1 + UNIFIED)
    found = detect.cgroup_mounts(str(tmp_path / "mountinfo"))
    assert found.v2 == "/sys/fs/cgroup/unified"
    assert set(found.v1) == {"cpu", "cpuacct", "memory", "pids"}

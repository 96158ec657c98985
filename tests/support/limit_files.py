"""The kernel's files of a job's limits, whatever the version of cgroups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobworker import units
from jobworker.jobs import JobRecord
from support.leftovers import cgroups

_FILES = {
    "memory": {"memory.max", "memory.limit_in_bytes"},
    "cpu": {"cpu.max", "cpu.cfs_quota_us"},
    "cpu_weight": {"cpu.weight", "cpu.shares"},
    "pids": {"pids.max"},
    "cpuset": {"cpuset.cpus"},
    "io_write": {"io.max", "blkio.throttle.write_bps_device"},
}
_UNLIMITED = {"max", "-1", "max 100000"}


def limit_file(job: JobRecord, name: str) -> Path:
    """Where the kernel has one of the job's limits."""
    found = [Path(group) / file for group in cgroups(job.job_id) for file in _FILES[name]]
    (path,) = (path for path in found if path.exists())
    return path


def kernel_limits(job: JobRecord) -> dict[str, str]:
    """Those of memory, CPU time and processes that the kernel holds a job to, as the agent tells them."""
    found = {}
    for name, show in _SHOW.items():
        text = limit_file(job, name).read_text().strip()
        if text not in _UNLIMITED and int(text.split()[0]) < _NO_MEMORY:
            found[name] = show(int(text.split()[0]))
    return found


# What v1 reads as without a limit of memory, and more.
_NO_MEMORY = 2**62
_SHOW: dict[str, Callable[[int], str]] = {
    "memory": units.format_size,
    "cpu": lambda quota: units.format_cpu(quota // 100),
    "pids": str,
}

"""cgroup v2: one directory limits the job and holds it together.

Source: Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import Any

from jobworker.jobs import Usage
from jobworker.kernel.cgroup import tree
from jobworker.kernel.cgroup.base import (
    CONTROLLERS,
    CPU_PERIOD_USEC,
    USEC_PER_MILLI,
    Group,
    Hierarchy,
    Support,
    unsupported,
    without_file,
)
from jobworker.kernel.cgroup.files import Base, CgroupDir
from jobworker.kernel.disk import LATE_WRITES
from jobworker.limits import IO, IO_WRITES, USUAL_WEIGHT, Enforcement, Limits

# What the parent grants of cpuset.cpus; all that it has, where none are asked for or it has none of those.
_CPUS = "cpuset.cpus.effective"
_CONTROLLERS = tuple(dict.fromkeys(CONTROLLERS.values()))
# Which the kernel has if it has that kind of limit.
_FILES = {
    "cpu": "cpu.max",
    "cpu_weight": "cpu.weight",
    "cpuset": "cpuset.cpus",
    "memory": "memory.max",
    "swap": "memory.swap.max",
    "pids": "pids.max",
    **dict.fromkeys(IO, "io.max"),
}
# Limits by the key that io.max has them under.
_IO_KEYS = {"rbps": "io_read_bps", "wbps": "io_write_bps", "riops": "io_read_ops", "wiops": "io_write_ops"}


class V2Group(Group):
    """Owns its directory, also when it can't be made."""

    def __init__(self, parent: Base, directory: CgroupDir, name: str) -> None:
        self._parent = parent
        self._dir = directory
        self.name = name
        self.clone_into_fd = directory.fd
        try:
            self.events_fd = tree.open_events(directory)
        except OSError:
            directory.close()
            raise
        self.events_mask = select.EPOLLPRI

    def join(self, *, cloned_into: bool) -> None:
        if not cloned_into:
            self._dir.write("cgroup.procs", "0")

    def apply(self, limits: Limits) -> None:
        if limits.cpu_millis is not None:
            self._dir.write("cpu.max", f"{limits.cpu_millis * USEC_PER_MILLI} {CPU_PERIOD_USEC}")
        if limits.memory_bytes is not None:
            self.apply_memory(self.memory_dir, limits)
        if limits.pids is not None:
            self._dir.write("pids.max", str(limits.pids))
        if limits.cpu_weight is not None:
            self._dir.write("cpu.weight", str(limits.cpu_weight))
        if limits.cpuset is not None:
            self._dir.write("cpuset.cpus", limits.cpuset)
        if limits.io_device is not None:
            asked = {key: getattr(limits, field) for key, field in _IO_KEYS.items()}
            rates = " ".join(f"{key}={rate}" for key, rate in asked.items() if rate is not None)
            self._dir.write("io.max", f"{limits.io_device} {rates}")

    @property
    def memory_dir(self) -> CgroupDir:
        return self._dir

    def apply_memory(self, directory: CgroupDir, limits: Limits) -> None:
        # First, for the limit would only push the job out to swap. Absent where there is no swap.
        with contextlib.suppress(FileNotFoundError):
            directory.write("memory.swap.max", str(limits.swap_bytes or 0))
        directory.write("memory.max", str(limits.memory_bytes))

    def lift(self, limits: Limits) -> None:
        if limits.cpu_millis is not None:
            self._dir.write("cpu.max", f"max {CPU_PERIOD_USEC}")
        if limits.memory_bytes is not None:
            self._dir.write("memory.max", "max")
            with contextlib.suppress(FileNotFoundError):
                self._dir.write("memory.swap.max", "max")
        if limits.pids is not None:
            self._dir.write("pids.max", "max")
        if limits.cpu_weight is not None:
            self._dir.write("cpu.weight", str(USUAL_WEIGHT))
        if limits.cpuset is not None:
            # Empty: those of the parent.
            self._dir.write("cpuset.cpus", "\n")
        if limits.io_device is not None:
            given = (key for key, field in _IO_KEYS.items() if getattr(limits, field) is not None)
            self._dir.write("io.max", " ".join((limits.io_device, *(f"{key}=max" for key in given))))

    def limits(self, disk: str | None) -> Limits:
        read = self._dir.read_if_there
        quota, _, period = read("cpu.max", "max").partition(" ")
        memory, pids, swap = (read(name, "max") for name in ("memory.max", "pids.max", "memory.swap.max"))
        return Limits(
            cpu_millis=None if quota == "max" else int(quota) * 1000 // int(period),
            memory_bytes=None if memory == "max" else int(memory),
            pids=None if pids == "max" else int(pids),
            cpu_weight=int(read("cpu.weight", "0")) or None,
            cpuset=(read("cpuset.cpus", "") and read(_CPUS, "")) or None,
            swap_bytes=None if swap == "max" else int(swap),
            **self._io_limits(disk),
        )

    def _io_limits(self, disk: str | None) -> dict[str, Any]:
        for line in self._dir.read_if_there("io.max", "").splitlines() if disk else ():
            number, *pairs = line.split()
            if number == disk:
                rates = dict(pair.split("=") for pair in pairs)
                set_here = {field: rates.get(key, "max") for key, field in _IO_KEYS.items()}
                return {"io_device": number} | {f: int(rate) for f, rate in set_here.items() if rate != "max"}
        return {}

    def limit_fds(self) -> tuple[int, ...]:
        return (self._dir.fd,)

    def populated(self) -> bool:
        return tree.populated(self.events_fd)

    def signal_all(self, *signums: int) -> None:
        tree.signal_all(self._dir, *signums)

    def kill(self) -> None:
        tree.kill(self._dir)

    def usage(self) -> Usage:
        cpu = self._dir.read_keyed("cpu.stat")
        # memory.peak came with Linux 5.19, and memory.* only with its controller.
        events = self._dir.read_keyed("memory.events")
        cpu_stalled, memory_stalled, io_stalled = tree.stalled(self._dir)
        return Usage(
            cpu_usec=cpu.get("usage_usec", 0),
            memory_peak_bytes=int(self._dir.read_if_there("memory.peak", "0")),
            oom_kills=events.get("oom_kill", 0),
            throttled_usec=cpu.get("throttled_usec", 0),
            io_read_bytes=self._io_total("rbytes"),
            io_written_bytes=self._io_total("wbytes"),
            memory_bytes=int(self._dir.read_if_there("memory.current", "0")),
            processes=int(self._dir.read_if_there("pids.current", "0")),
            cpu_stalled_usec=cpu_stalled,
            memory_stalled_usec=memory_stalled,
            io_stalled_usec=io_stalled,
        )

    def _io_total(self, key: str) -> int:
        pairs = (word.partition("=") for word in self._dir.read_if_there("io.stat", "").split())
        return sum(int(value) for name, _, value in pairs if name == key)

    def remove(self) -> None:
        self._parent.dir.remove_child(self.name)
        self.close()

    def close(self) -> None:
        os.close(self.events_fd)
        self._dir.close()


class V2Hierarchy(Hierarchy):
    """Groups below `base`, whose ancestors hand the controllers down."""

    def __init__(self, parent: str, base: Base, top: CgroupDir) -> None:
        self.mode = "v2"
        self.parent = parent
        self._base = base
        self._top = top
        self._available = frozenset(base.dir.read("cgroup.subtree_control").split())
        self.support = tuple(self._support(name, controller) for name, controller in CONTROLLERS.items())

    def _support(self, name: str, controller: str) -> Support:
        if controller not in self._available:
            return unsupported(name, f"the {controller} controller is not delegated to the agent")
        if not self._base.dir.has(_FILES[name]):
            return without_file(name, _FILES[name])
        if name in IO_WRITES and "memory" not in self._available:
            # By the memory that is written it is told whose the write is (cgroup-v2.rst, Writeback).
            return Support(name, Enforcement.BEST_EFFORT, f"without the memory controller {LATE_WRITES}")
        return Support(name)

    def cpus(self) -> str:
        return self._base.read(_CPUS) if "cpuset" in self._available else super().cpus()

    def create(self, name: str, limits: Limits) -> V2Group:
        try:
            group = V2Group(self._base, self._base.make_child(name), name)
            try:
                group.apply(limits)
            except OSError:
                group.close()
                raise
        except OSError:
            self.discard(name)
            raise
        return group

    def adopt(self, name: str) -> V2Group:
        return V2Group(self._base, self._base.dir.child(name), name)

    def discard(self, name: str) -> None:
        self._base.dir.remove_child(name)

    def names(self) -> list[str]:
        return self._base.dir.children()

    def remove(self) -> None:
        remove_chain(self._top, self._base.dir)


def remove_chain(top: CgroupDir, base: CgroupDir) -> None:
    """Remove `base` and its ancestors up to, but without, `top`, as far as they are empty."""
    path = os.path.relpath(base.path, top.path)
    base.close()
    with contextlib.suppress(OSError):
        while path:
            os.rmdir(path, dir_fd=top.fd)
            path = os.path.dirname(path)


def make_chain(top: CgroupDir, delegated: str, path: str) -> CgroupDir:
    """Open a cgroup, making what is missing, and hand the controllers down to those below it.

    A controller that can't be handed down is left out; the hierarchy then reports it as unsupported.

    Args:
        top: the root of the hierarchy.
        delegated: from it to the first cgroup that may be written to; what is above is the service manager's.
        path: from that one.
    """
    with contextlib.closing(top.make_below(delegated)) as first:
        directory = first.make_below(path, lambda parent, _child: _enable(parent))
    _enable(directory)
    return directory


def _enable(directory: CgroupDir) -> None:
    for name in _CONTROLLERS:
        # A delegated one may have been given some of them.
        with contextlib.suppress(OSError):
            directory.write("cgroup.subtree_control", f"+{name}")

"""cgroup v1: one directory in each controller's hierarchy limits the job, one in a v2 hierarchy holds it.

The v2 hierarchy has no controllers; it is the host's own on a hybrid host, else one that the agent mounts.
Source: Documentation/admin-guide/cgroup-v1/.
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
from jobworker.kernel.cgroup.v2 import remove_chain
from jobworker.kernel.disk import LATE_WRITES
from jobworker.limits import BY_NAME, IO, IO_WRITES, USUAL_WEIGHT, Enforcement, Limits

_ACCOUNTING = "cpuacct"
# Nothing is limited here. Without a group of its own a job would have what devices the agent's unit is left with.
_DEVICES = "devices"
_NAMES = {"io": "blkio"}
USED = (*(_NAMES.get(name, name) for name in dict.fromkeys(CONTROLLERS.values())), _ACCOUNTING, _DEVICES)
# Joined by jobs that ask for it alone.
_OPTIONAL = "cpuset"
# cpu.shares of the usual weight.
_SHARES = 1024
_IO_FILES = {
    "io_read_bps": "blkio.throttle.read_bps_device",
    "io_write_bps": "blkio.throttle.write_bps_device",
    "io_read_ops": "blkio.throttle.read_iops_device",
    "io_write_ops": "blkio.throttle.write_iops_device",
}
# Which the kernel has if it has that kind of limit.
_FILES = {
    "cpu": "cpu.cfs_quota_us",
    "cpu_weight": "cpu.shares",
    "cpuset": "cpuset.cpus",
    "memory": "memory.limit_in_bytes",
    "swap": "memory.memsw.limit_in_bytes",
    "pids": "pids.max",
    **{name: _IO_FILES[BY_NAME[name].field] for name in IO},
}
# Those of cpuset.cpus that the group has.
_CPUS = "cpuset.effective_cpus"
# What memory.limit_in_bytes reads as without a limit: the largest page count.
_UNLIMITED = 2**62


class V1Group(Group):
    """Attributes are the directories: `holder` in the v2 hierarchy, `dirs` by controller."""

    def __init__(self, parents: V1Hierarchy, holder: CgroupDir, dirs: dict[str, CgroupDir], name: str) -> None:
        self._parents = parents
        self._holder = holder
        self._dirs = dirs
        self.name = name
        self.clone_into_fd = holder.fd
        self.events_fd = tree.open_events(holder)
        self.events_mask = select.EPOLLPRI

    def join(self, *, cloned_into: bool) -> None:
        if not cloned_into:
            self._holder.write("cgroup.procs", "0")
        # "0" into `tasks` moves the writer alone and spares the global lock that cgroup.procs takes.
        for directory in self._dirs.values():
            directory.write("tasks", "0")

    def apply(self, limits: Limits) -> None:
        if limits.cpu_millis is not None:
            self._dirs["cpu"].write("cpu.cfs_period_us", str(CPU_PERIOD_USEC))
            self._dirs["cpu"].write("cpu.cfs_quota_us", str(limits.cpu_millis * USEC_PER_MILLI))
        if limits.memory_bytes is not None:
            self.apply_memory(self.memory_dir, limits)
        if limits.pids is not None:
            self._dirs["pids"].write("pids.max", str(limits.pids))
        if limits.cpu_weight is not None:
            self._dirs["cpu"].write("cpu.shares", str(limits.cpu_weight * _SHARES // USUAL_WEIGHT))
        if limits.cpuset is not None:
            self._dirs["cpuset"].write("cpuset.cpus", limits.cpuset)
        for field, name in _IO_FILES.items():
            if (rate := getattr(limits, field)) is not None:
                self._dirs["blkio"].write(name, f"{limits.io_device} {rate}")

    def lift(self, limits: Limits) -> None:
        if limits.cpu_millis is not None:
            self._dirs["cpu"].write("cpu.cfs_quota_us", "-1")
        if limits.memory_bytes is not None:
            if self._read_swap():
                self._dirs["memory"].write("memory.memsw.limit_in_bytes", "-1")
            self._dirs["memory"].write("memory.limit_in_bytes", "-1")
        if limits.pids is not None:
            self._dirs["pids"].write("pids.max", "max")
        if limits.cpu_weight is not None:
            self._dirs["cpu"].write("cpu.shares", str(_SHARES))
        for field, name in _IO_FILES.items():
            if getattr(limits, field) is not None:
                self._dirs["blkio"].write(name, f"{limits.io_device} 0")

    def lacking(self, limit: str) -> str:
        controller = _NAMES.get(CONTROLLERS[limit], CONTROLLERS[limit])
        if controller in self._dirs:
            return ""
        return f"with cgroup v1 only a job that joined the {controller} controller at its start can be given one"

    @property
    def memory_dir(self) -> CgroupDir:
        return self._dirs["memory"]

    def apply_memory(self, directory: CgroupDir, limits: Limits) -> None:
        """Both, so that the limit does not push the job out to swap; the second one is absent without swap."""
        memory = limits.memory_bytes or 0
        values = [("memory.limit_in_bytes", memory)]
        if both := directory.read_if_there("memory.memsw.limit_in_bytes", ""):
            # The first may at no time be more than the second.
            values.insert(int(both) >= memory, ("memory.memsw.limit_in_bytes", memory + (limits.swap_bytes or 0)))
        for name, value in values:
            directory.write(name, str(value))

    def limits(self, disk: str | None) -> Limits:
        quota = self._read("cpu", "cpu.cfs_quota_us", "-1")
        memory = self._read("memory", "memory.limit_in_bytes", str(_UNLIMITED))
        pids = self._read("pids", "pids.max", "max")
        period = int(self._read("cpu", "cpu.cfs_period_us", "1"))
        shares, both = self._read("cpu", "cpu.shares", ""), self._read_swap()
        return Limits(
            cpu_millis=None if quota == "-1" else int(quota) * 1000 // period,
            memory_bytes=None if int(memory) >= _UNLIMITED else int(memory),
            pids=None if pids == "max" else int(pids),
            cpu_weight=round(int(shares) * USUAL_WEIGHT / _SHARES) if shares else None,
            cpuset=self._read("cpuset", _CPUS, "") or None,
            swap_bytes=int(both) - int(memory) if both and int(both) < _UNLIMITED else None,
            **self._io_limits(disk),
        )

    def _io_limits(self, disk: str | None) -> dict[str, Any]:
        if not disk:
            return {}
        rates: dict[str, Any] = {"io_device": disk}
        for field, name in _IO_FILES.items():
            for line in self._read("blkio", name, "").splitlines():
                number, rate = line.split()
                if number == disk:
                    rates[field] = int(rate)
        return rates

    def limit_fds(self) -> tuple[int, ...]:
        return tuple(directory.fd for name, directory in self._dirs.items() if name != _ACCOUNTING)

    def _read(self, controller: str, name: str, absent: str) -> str:
        directory = self._dirs.get(controller)
        return directory.read_if_there(name, absent) if directory else absent

    def _read_swap(self) -> str:
        # Absent where the kernel does not account for swap.
        return self._read("memory", "memory.memsw.limit_in_bytes", "")

    def populated(self) -> bool:
        return tree.populated(self.events_fd)

    def signal_all(self, *signums: int) -> None:
        tree.signal_all(self._holder, *signums)

    def kill(self) -> None:
        tree.kill(self._holder)

    def usage(self) -> Usage:
        cpu = self._dirs["cpu"].read_keyed("cpu.stat") if "cpu" in self._dirs else {}
        memory = self._dirs["memory"].read_keyed("memory.oom_control") if "memory" in self._dirs else {}
        cpu_stalled, memory_stalled, io_stalled = tree.stalled(self._holder)
        return Usage(
            cpu_usec=int(self._read(_ACCOUNTING, "cpuacct.usage", "0")) // 1000,
            memory_peak_bytes=int(self._read("memory", "memory.max_usage_in_bytes", "0")),
            oom_kills=memory.get("oom_kill", 0),
            throttled_usec=cpu.get("throttled_time", 0) // 1000,
            io_read_bytes=self._io_total("Read"),
            io_written_bytes=self._io_total("Write"),
            memory_bytes=int(self._read("memory", "memory.usage_in_bytes", "0")),
            processes=int(self._read("pids", "pids.current", "0")),
            cpu_stalled_usec=cpu_stalled,
            memory_stalled_usec=memory_stalled,
            io_stalled_usec=io_stalled,
        )

    def _io_total(self, operation: str) -> int:
        lines = (line.split() for line in self._read("blkio", "blkio.throttle.io_service_bytes", "").splitlines())
        return sum(int(line[2]) for line in lines if len(line) == 3 and line[1] == operation)  # noqa: PLR2004

    def remove(self) -> None:
        self._parents.discard(self.name)
        self.close()

    def close(self) -> None:
        os.close(self.events_fd)
        for directory in (self._holder, *self._dirs.values()):
            directory.close()


def _opened(undo: contextlib.ExitStack, directory: CgroupDir) -> CgroupDir:
    undo.callback(directory.close)
    return directory


class V1Hierarchy(Hierarchy):
    """Groups below the same path in each controller's hierarchy.

    Args:
        mode: `hybrid` or `v1`.
        parent: the cgroup that the bases are below.
        holder: the base in the v2 hierarchy.
        bases: by controller, the base in its hierarchy.
        tops: the roots of these hierarchies, the v2 one's last.
    """

    def __init__(
        self, mode: str, parent: str, holder: Base, bases: dict[str, Base], tops: tuple[CgroupDir, ...]
    ) -> None:
        self.mode = mode
        self.parent = parent
        self._holder = holder
        self._bases = bases
        self._tops = tops
        self.support = tuple(self._support(name, controller) for name, controller in CONTROLLERS.items())

    def _support(self, name: str, controller: str) -> Support:
        controller = _NAMES.get(controller, controller)
        if controller not in self._bases:
            return unsupported(name, f"the {controller} controller is not mounted or not writable")
        if not self._bases[controller].dir.has(_FILES[name]):
            return without_file(name, _FILES[name])
        if name in IO_WRITES:
            return Support(name, Enforcement.BEST_EFFORT, f"with cgroup v1 {LATE_WRITES}")
        return Support(name)

    def cpus(self) -> str:
        return self._bases["cpuset"].read(_CPUS) if "cpuset" in self._bases else super().cpus()

    def create(self, name: str, limits: Limits) -> V1Group:
        try:
            group = self._make(name, limits)
            try:
                group.apply(limits)
            except OSError:
                group.close()
                raise
        except OSError:
            self.discard(name)
            raise
        return group

    def _make(self, name: str, limits: Limits) -> V1Group:
        leave_out = () if limits.cpuset else (_OPTIONAL,)
        with contextlib.ExitStack() as undo:
            holder = _opened(undo, self._holder.make_child(name))
            bases = {controller: base for controller, base in self._bases.items() if controller not in leave_out}
            dirs = {controller: _opened(undo, base.make_child(name)) for controller, base in bases.items()}
            group = V1Group(self, holder, dirs, name)
            undo.pop_all()
        return group

    def adopt(self, name: str) -> V1Group:
        with contextlib.ExitStack() as undo:
            holder, dirs = _opened(undo, self._holder.dir.child(name)), {}
            for controller, base in self._bases.items():
                # One that it did not ask for, or that the version which made it did not use.
                with contextlib.suppress(FileNotFoundError):
                    dirs[controller] = _opened(undo, base.dir.child(name))
            group = V1Group(self, holder, dirs, name)
            undo.pop_all()
        return group

    def discard(self, name: str) -> None:
        # The holder last: while it is there, the group is still known by it.
        for base in (*self._bases.values(), self._holder):
            base.dir.remove_child(name)

    def names(self) -> list[str]:
        bases = (self._holder, *self._bases.values())
        return sorted({name for base in bases for name in base.dir.children()})

    def remove(self) -> None:
        for top, base in zip(self._tops, (*self._bases.values(), self._holder), strict=True):
            remove_chain(top, base.dir)
            top.close()

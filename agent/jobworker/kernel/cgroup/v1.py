"""cgroup v1: one directory in each controller's hierarchy limits the job, one in a v2 hierarchy holds it.

The v2 hierarchy has no controllers; it is the host's own on a hybrid host, else one that the agent mounts.
Source: Documentation/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable

from jobworker.jobs import Limits, Usage
from jobworker.kernel.cgroup import tree
from jobworker.kernel.cgroup.base import CPU_PERIOD_USEC, USEC_PER_MILLI, Group, Hierarchy, Support
from jobworker.kernel.cgroup.files import CgroupDir
from jobworker.kernel.cgroup.v2 import remove_chain

_LIMITERS = ("cpu", "memory", "pids")
_ACCOUNTING = "cpuacct"
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
            self._dirs["memory"].write("memory.limit_in_bytes", str(limits.memory_bytes))
            # Memory and swap together, so that the limit does not push the job out to swap; absent without swap.
            with contextlib.suppress(FileNotFoundError):
                self._dirs["memory"].write("memory.memsw.limit_in_bytes", str(limits.memory_bytes))
        if limits.pids is not None:
            self._dirs["pids"].write("pids.max", str(limits.pids))

    def limits(self) -> Limits:
        quota = self._read("cpu", "cpu.cfs_quota_us", "-1")
        memory = self._read("memory", "memory.limit_in_bytes", str(_UNLIMITED))
        pids = self._read("pids", "pids.max", "max")
        period = int(self._read("cpu", "cpu.cfs_period_us", "1"))
        return Limits(
            cpu_millis=None if quota == "-1" else int(quota) * 1000 // period,
            memory_bytes=None if int(memory) >= _UNLIMITED else int(memory),
            pids=None if pids == "max" else int(pids),
        )

    def _read(self, controller: str, name: str, absent: str) -> str:
        directory = self._dirs.get(controller)
        return directory.read(name).strip() if directory else absent

    def populated(self) -> bool:
        return tree.populated(self.events_fd)

    def signal_all(self, signum: int) -> None:
        tree.signal_all(self._holder, signum)

    def kill(self) -> None:
        tree.kill(self._holder)

    def usage(self) -> Usage:
        cpu = self._dirs["cpu"].read_keyed("cpu.stat") if "cpu" in self._dirs else {}
        memory = self._dirs["memory"].read_keyed("memory.oom_control") if "memory" in self._dirs else {}
        return Usage(
            cpu_usec=int(self._read(_ACCOUNTING, "cpuacct.usage", "0")) // 1000,
            memory_peak_bytes=int(self._read("memory", "memory.max_usage_in_bytes", "0")),
            oom_kills=memory.get("oom_kill", 0),
            throttled_usec=cpu.get("throttled_time", 0) // 1000,
        )

    def remove(self) -> None:
        self._parents.discard(self.name)
        self.close()

    def close(self) -> None:
        os.close(self.events_fd)
        for directory in (self._holder, *self._dirs.values()):
            directory.close()


class V1Hierarchy(Hierarchy):
    """Groups below the same path in each controller's hierarchy.

    Args:
        mode: `hybrid` or `v1`.
        holder: the base in the v2 hierarchy.
        bases: by controller, the base in its hierarchy.
        tops: the roots of these hierarchies, the v2 one's last.
    """

    def __init__(
        self, mode: str, holder: CgroupDir, bases: dict[str, CgroupDir], tops: tuple[CgroupDir, ...]
    ) -> None:
        self.mode = mode
        self._holder = holder
        self._bases = bases
        self._tops = tops
        self.support = tuple(
            Support(name, "" if name in bases else f"the {name} controller is not mounted or not writable")
            for name in _LIMITERS
        )

    def create(self, name: str, limits: Limits) -> V1Group:
        try:
            group = self._open(name, CgroupDir.make_child)
            try:
                group.apply(limits)
            except OSError:
                group.close()
                raise
        except OSError:
            self.discard(name)
            raise
        return group

    def adopt(self, name: str) -> V1Group:
        return self._open(name, CgroupDir.child)

    def _open(self, name: str, open_child: Callable[[CgroupDir, str], CgroupDir]) -> V1Group:
        with contextlib.ExitStack() as undo:
            opened = []
            for base in (self._holder, *self._bases.values()):
                opened.append(open_child(base, name))
                undo.callback(opened[-1].close)
            group = V1Group(self, opened[0], dict(zip(self._bases, opened[1:], strict=True)), name)
            undo.pop_all()
        return group

    def discard(self, name: str) -> None:
        # The holder last: while it is there, the group is still known by it.
        for base in (*self._bases.values(), self._holder):
            base.remove_child(name)

    def names(self) -> list[str]:
        bases = (self._holder, *self._bases.values())
        return sorted({name for base in bases for name in base.children()})

    def remove(self) -> None:
        for top, base in zip(self._tops, (*self._bases.values(), self._holder), strict=True):
            remove_chain(top, base)
            top.close()

"""cgroup v2: one directory limits the job and holds it together.

Source: Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import os
import select

from jobworker.jobs import Limits, Usage
from jobworker.kernel.cgroup import tree
from jobworker.kernel.cgroup.base import CPU_PERIOD_USEC, USEC_PER_MILLI, Group, Hierarchy, Support
from jobworker.kernel.cgroup.files import CgroupDir

_CONTROLLERS = ("cpu", "memory", "pids")


class V2Group(Group):
    def __init__(self, parent: CgroupDir, directory: CgroupDir, name: str) -> None:
        self._parent = parent
        self._dir = directory
        self.name = name
        self.clone_into_fd = directory.fd
        self.events_fd = tree.open_events(directory)
        self.events_mask = select.EPOLLPRI

    def join(self, *, cloned_into: bool) -> None:
        if not cloned_into:
            self._dir.write("cgroup.procs", "0")

    def apply(self, limits: Limits) -> None:
        if limits.cpu_millis is not None:
            self._dir.write("cpu.max", f"{limits.cpu_millis * USEC_PER_MILLI} {CPU_PERIOD_USEC}")
        if limits.memory_bytes is not None:
            self._dir.write("memory.max", str(limits.memory_bytes))
            # Without this the limit would only push the job out to swap. Absent where there is no swap.
            with contextlib.suppress(FileNotFoundError):
                self._dir.write("memory.swap.max", "0")
        if limits.pids is not None:
            self._dir.write("pids.max", str(limits.pids))

    def limits(self) -> Limits:
        quota, _, period = self._read("cpu.max", "max").partition(" ")
        memory, pids = self._read("memory.max", "max"), self._read("pids.max", "max")
        return Limits(
            cpu_millis=None if quota == "max" else int(quota) * 1000 // int(period),
            memory_bytes=None if memory == "max" else int(memory),
            pids=None if pids == "max" else int(pids),
        )

    def _read(self, name: str, absent: str) -> str:
        return self._dir.read(name).strip() if self._dir.has(name) else absent

    def populated(self) -> bool:
        return tree.populated(self.events_fd)

    def signal_all(self, signum: int) -> None:
        tree.signal_all(self._dir, signum)

    def kill(self) -> None:
        tree.kill(self._dir)

    def usage(self) -> Usage:
        cpu = self._dir.read_keyed("cpu.stat")
        # memory.peak came with Linux 5.19, and memory.* only with its controller.
        events = self._dir.read_keyed("memory.events") if self._dir.has("memory.events") else {}
        return Usage(
            cpu_usec=cpu.get("usage_usec", 0),
            memory_peak_bytes=int(self._read("memory.peak", "0")),
            oom_kills=events.get("oom_kill", 0),
            throttled_usec=cpu.get("throttled_usec", 0),
        )

    def remove(self) -> None:
        self._parent.remove_child(self.name)
        self.close()

    def close(self) -> None:
        os.close(self.events_fd)
        self._dir.close()


class V2Hierarchy(Hierarchy):
    """Groups below `base`, whose ancestors hand the controllers down."""

    def __init__(self, base: CgroupDir, top: CgroupDir) -> None:
        self.mode = "v2"
        self._base = base
        self._top = top
        available = base.read("cgroup.subtree_control").split()
        self.support = tuple(
            Support(name, "" if name in available else f"the {name} controller is not delegated to the agent")
            for name in _CONTROLLERS
        )

    def create(self, name: str, limits: Limits) -> V2Group:
        group = V2Group(self._base, self._base.make_child(name), name)
        try:
            group.apply(limits)
        except OSError:
            group.remove()
            raise
        return group

    def adopt(self, name: str) -> V2Group:
        return V2Group(self._base, self._base.child(name), name)

    def discard(self, name: str) -> None:
        self._base.remove_child(name)

    def names(self) -> list[str]:
        return self._base.children()

    def remove(self) -> None:
        remove_chain(self._top, self._base)


def remove_chain(top: CgroupDir, base: CgroupDir) -> None:
    """Remove `base` and its ancestors up to, but without, `top`, as far as they are empty."""
    path = os.path.relpath(base.path, top.path)
    base.close()
    with contextlib.suppress(OSError):
        while path:
            os.rmdir(path, dir_fd=top.fd)
            path = os.path.dirname(path)


def make_chain(top: CgroupDir, path: str) -> CgroupDir:
    """Open `path` below `top`, making what is missing, and hand the controllers down all the way.

    A controller that can't be handed down is left out; the hierarchy then reports it as unsupported.
    """
    directory = CgroupDir(os.dup(top.fd), top.path)
    for part in (part for part in path.split("/") if part):
        _enable(directory)
        child = directory.make_child(part)
        directory.close()
        directory = child
    _enable(directory)
    return directory


def _enable(directory: CgroupDir) -> None:
    for name in _CONTROLLERS:
        # A v2 mount beside v1 has no controllers to hand down, a delegated one may have some.
        with contextlib.suppress(OSError):
            directory.write("cgroup.subtree_control", f"+{name}")

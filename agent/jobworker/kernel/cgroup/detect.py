"""Which cgroups this host has, and where the agent may make its own.

Told by mountinfo (proc_pid_mountinfo(5)): a cgroup2 file system with the controllers is v2; v1 controllers
beside a cgroup2 without them are hybrid; v1 controllers alone are v1, and the agent mounts a cgroup2 for itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from functools import partial

from jobworker.kernel import mounts
from jobworker.kernel.cgroup import tree
from jobworker.kernel.cgroup.base import CONTROLLERS, Hierarchy
from jobworker.kernel.cgroup.files import Base, CgroupDir
from jobworker.kernel.cgroup.v1 import USED, V1Hierarchy
from jobworker.kernel.cgroup.v2 import V2Hierarchy, make_chain

_LIMITING = frozenset(CONTROLLERS.values())
_DELEGATED = ("trusted.delegate", "user.delegate")
# A unit beside the agent's own whose delegated cgroup is for jobs alone. A cgroup that has handed controllers down
# takes no process any more: in its own, systemd could not start the agent again while jobs run.
_JOBS_UNIT = "jobworker-jobs.service"
# Where the agent's own processes are below a cgroup that jobs are below as well.
_LEAF = "agent"


@dataclass(frozen=True, slots=True)
class Mounts:
    """Mount points: of cgroup2, if there is one, and of each v1 controller."""

    v2: str | None
    v1: dict[str, str]


class NoCgroups(Exception):
    """The agent can't make cgroups here; the message says why, for the user."""


def cgroup_mounts(mountinfo: str = "/proc/self/mountinfo") -> Mounts:
    v2: str | None = None
    v1: dict[str, str] = {}
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            point = before.split(" ")[4]
            kind, _, options = after.rstrip("\n").split(" ", 2)
            if kind == "cgroup2" and v2 is None:
                v2 = point
            elif kind == "cgroup":
                v1 |= {name: point for name in options.split(",") if name in USED}
    return Mounts(v2, v1)


def hierarchy(instance: str, parent: str, before: str = "") -> Hierarchy:
    """The hierarchy in which this agent's jobs live.

    Args:
        instance: the agent's name among those on this host.
        parent: the cgroup to make it below, from the mount point; empty to choose one.
        before: what it was below in an earlier life; as long as groups of jobs are there, it stays there.

    Raises:
        NoCgroups: there are none to be had here.
    """
    found = cgroup_mounts()
    if before and _holds_groups(found, f"{before}/{instance}"):
        parent = before
    try:
        if found.v2 and _LIMITING & set(_read_controllers(found.v2)):
            return _v2(found.v2, instance, parent)
        if found.v1:
            return _v1(found, instance, parent)
    except OSError as error:
        raise NoCgroups(_why_not(error)) from None
    raise NoCgroups("the host has no cgroup file system mounted; see cgroups(7)")


def _holds_groups(found: Mounts, base: str) -> bool:
    """True if there are groups below; a base without any is removed."""
    held = False
    for mount in {*found.v1.values(), found.v2 or ""} - {""}:
        try:
            os.rmdir(mount + base)
        except OSError as error:
            held |= error.errno == errno.EBUSY
    return held


def _read_controllers(mount: str) -> list[str]:
    with open(f"{mount}/cgroup.controllers", encoding="ascii") as file:
        return file.read().split()


def _why_not(error: OSError) -> str:
    if os.geteuid() == 0:
        return f"{error.filename}: {error.strerror}"
    return (
        "no cgroup is delegated to this user; run the agent as root, or on a host with cgroup v2 under "
        "`systemd-run --user --scope -p Delegate=yes`"
    )


def _v2(mount: str, instance: str, parent: str) -> V2Hierarchy:
    top = CgroupDir.open(mount)
    own = _own_cgroup(mount)
    path = parent or _choose_parent(mount, own)
    if path == own and _is_delegated(mount + own):
        _leave_for_leaf(mount + own)
    delegated = _delegated(mount, path)
    below = f"{path.removeprefix(delegated)}/{instance}"
    return V2Hierarchy(path, Base(partial(make_chain, top, delegated, below)), top)


def _own_cgroup(mount: str) -> str:
    """What the service manager has started the agent in; since then it may have moved to the leaf there."""
    own = tree.own_cgroup()
    above, name = os.path.split(own)
    return above if name == _LEAF and _is_delegated(mount + above) else own


def _choose_parent(mount: str, own: str) -> str:
    for_jobs = f"{os.path.dirname(own)}/{_JOBS_UNIT}"
    if _is_delegated(mount + for_jobs):
        return for_jobs
    if _is_delegated(mount + own):
        return own
    if os.geteuid() == 0:
        return "/jobworker"
    # An ordinary user owns what is beside its own cgroup, if its service manager runs with a delegation.
    return os.path.dirname(own)


def _delegated(mount: str, path: str) -> str:
    """The innermost cgroup at or above this one that the service manager has marked; empty if none is."""
    while path and not _is_delegated(mount + path):
        path = path.rpartition("/")[0]
    return path


def _is_delegated(path: str) -> bool:
    """True if the service manager has marked the cgroup as ours to divide (systemd.resource-control(5))."""
    for attribute in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(path, attribute) == b"1":
                return True
    return False


def _leave_for_leaf(path: str) -> None:
    """Move what runs in a delegated cgroup into a leaf: one that has processes can't hand controllers down."""
    own = CgroupDir.open(path)
    leaf = own.make_child(_LEAF)
    for pid in own.pids():
        with contextlib.suppress(ProcessLookupError):
            leaf.write("cgroup.procs", str(pid))
    leaf.close()
    own.close()


def _v1(found: Mounts, instance: str, parent: str) -> V1Hierarchy:
    parent = parent or "/jobworker"
    path = f"{parent}/{instance}"
    holder_top = CgroupDir.open(found.v2) if found.v2 else _mount_own()
    holder = Base(partial(holder_top.make_below, path))
    bases, tops = {}, []
    for controller, point in found.v1.items():
        top = CgroupDir.open(point)
        # A controller that the agent may not write is reported as unsupported, each for itself.
        with contextlib.suppress(PermissionError):
            prepare = _inherit_cpus if controller == "cpuset" else None
            bases[controller] = Base(partial(top.make_below, path, prepare))
            tops.append(top)
    return V1Hierarchy("hybrid" if found.v2 else "v1", parent, holder, bases, (*tops, holder_top))


def _mount_own() -> CgroupDir:
    """A cgroup2 without controllers, at no place: seen, it would make the host a hybrid to the next agent."""
    root = mounts.detached("cgroup2", mounts.NOSUID | mounts.NODEV | mounts.NOEXEC)
    try:
        return CgroupDir(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root), "cgroup2:")
    finally:
        os.close(root)


def _inherit_cpus(parent: CgroupDir, child: CgroupDir) -> None:
    """A v1 cpuset without CPUs or memory nodes takes no process; those below this one begin with what it has."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not child.read(name).strip():
            child.write(name, parent.read(name).strip())
    child.write("cgroup.clone_children", "1")

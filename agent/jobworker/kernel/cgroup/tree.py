"""Holding processes together with cgroup v2's core files: membership, emptiness, kill.

v2 uses this in the cgroup that also limits the job. v1 uses it in the v2 hierarchy that a hybrid host has
beside its controllers (or that the agent mounts for itself), because v1 has no kill and no event for empty.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal

from jobworker.kernel.cgroup.files import CgroupDir

# A group that forks while it is being frozen is caught within two or three passes.
_KILL_PASSES = 100
# How many processes are signalled at a time, a descriptor each; with each lot the whole list is read again.
_AT_A_TIME, _AT_LEAST = 4096, 3


def open_events(group: CgroupDir) -> int:
    """A descriptor that polls as EPOLLPRI after `populated` has changed since it was last read."""
    fd = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=group.fd)
    try:
        populated(fd)
    except OSError:
        os.close(fd)
        raise
    return fd


def populated(events_fd: int) -> bool:
    try:
        return b"populated 1" in os.pread(events_fd, 4096, 0)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        # It has been removed, which only an empty one can be.
        return False


def stalled(group: CgroupDir) -> tuple[int, int, int]:
    """For how long a process of the group has waited for a CPU, for memory and for a disk, in microseconds.

    Source: Documentation/accounting/psi.rst; 0 where the kernel does not account for it.
    """
    cpu, memory, io = (_some_total(group, f"{name}.pressure") for name in ("cpu", "memory", "io"))
    return cpu, memory, io


def _some_total(group: CgroupDir, name: str) -> int:
    # Also without PSI in its command line a kernel may have the files, which can't be read then.
    with contextlib.suppress(OSError):
        for word in group.read_if_there(name, "").split():
            if word.startswith("total="):
                return int(word.removeprefix("total="))
    return 0


def signal_all(group: CgroupDir, *signums: int) -> None:
    """Send signals to all processes in the group, and to no process that got one's pid meanwhile.

    To older ones first: a script that waits for a command is to hear of a signal before the command ends by it.
    """
    pids = _members(group)[::-1]
    while pids:
        pidfds = _open(pids)
        try:
            # What is still a member after its pidfd was opened is what the pidfd refers to.
            members = set(_members(group))
            for pid, pidfd in pidfds.items():
                if pid in members:
                    with contextlib.suppress(ProcessLookupError):
                        for signum in signums:
                            signal.pidfd_send_signal(pidfd, signum)
        finally:
            _close(pidfds)


def _members(group: CgroupDir) -> list[int]:
    """The processes in the group, and in cgroups that the job has made in it."""
    pids = group.pids()
    for path in group.below():
        # One that is gone; or one for threads, whose processes are told further up.
        with contextlib.suppress(OSError), contextlib.closing(group.inside(path)) as nested:
            pids += nested.pids()
    return pids


def _open(pids: list[int]) -> dict[int, int]:
    """Pidfds of as many as there is room for, which are taken from the list's end."""
    pidfds: dict[int, int] = {}
    while pids and len(pidfds) < _AT_A_TIME:
        try:
            pidfds[pids[-1]] = os.pidfd_open(pids[-1])
        except ProcessLookupError:
            pass
        except OSError as error:
            if error.errno != errno.EMFILE or len(pidfds) < _AT_LEAST:
                _close(pidfds)
                raise
            # The list has to be read yet, which takes two at a time.
            for _ in range(2):
                pid, pidfd = pidfds.popitem()
                os.close(pidfd)
                pids.append(pid)
            break
        pids.pop()
    return pidfds


def _close(pidfds: dict[int, int]) -> None:
    for pidfd in pidfds.values():
        os.close(pidfd)


def kill(group: CgroupDir) -> None:
    """SIGKILL everything in the group at once (cgroup.kill, Linux 5.14), or freeze, kill, thaw."""
    try:
        group.write("cgroup.kill", "1")
    except FileNotFoundError:
        _freeze_kill_thaw(group)


def _freeze_kill_thaw(group: CgroupDir) -> None:
    group.write("cgroup.freeze", "1")
    try:
        seen: set[int] = set()
        for _ in range(_KILL_PASSES):
            fresh = set(_members(group)) - seen
            if not fresh:
                break
            seen |= fresh
            signal_all(group, signal.SIGKILL)
    finally:
        group.write("cgroup.freeze", "0")


def own_cgroup() -> str:
    """The calling process's cgroup in the v2 hierarchy; cgroups(7)."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if not controllers:
                return path
    return "/"

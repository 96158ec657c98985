"""What the supervisor sees of cgroups, whatever their version.

`Hierarchy` is where the jobs' groups are made; `Group` is one job's. v1 and v2 are sisters below this, and so
is `kernel.subtree`, which does what can be done without any cgroup. `detect` chooses.
"""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import MappingProxyType

from jobworker import units
from jobworker.jobs import Usage
from jobworker.kernel.cgroup.files import CgroupDir
from jobworker.limits import IO, Enforcement, Limits

# The period of a CPU quota, in microseconds: the kernel's own default.
CPU_PERIOD_USEC = 100_000
USEC_PER_MILLI = CPU_PERIOD_USEC // 1000


@dataclass(frozen=True, slots=True)
class Support:
    """How far a kind of limit holds here.

    Attributes:
        limit: the kind's name.
        detail: why it is not ENFORCED.
    """

    limit: str
    enforcement: Enforcement = Enforcement.ENFORCED
    detail: str = ""


def unsupported(limit: str, reason: str) -> Support:
    return Support(limit, Enforcement.UNSUPPORTED, reason)


def without_file(limit: str, name: str) -> Support:
    """A controller may be there without a part of what it can do."""
    reason = "does not account for swap" if limit == "swap" else f"was built without {name}"
    return unsupported(limit, f"the kernel {reason}")


# The controller of each kind of limit, of v1 as well as v2 where they have the same name.
CONTROLLERS = MappingProxyType(
    {
        "cpu": "cpu",
        "cpu_weight": "cpu",
        "cpuset": "cpuset",
        "memory": "memory",
        "swap": "memory",
        "pids": "pids",
        **dict.fromkeys(IO, "io"),
    }
)


class Group(ABC):
    """One job's processes, held together so that none can leave.

    Attributes:
        name: the job's id.
        clone_into_fd: the directory that the job is cloned into with CLONE_INTO_CGROUP, if there is one.
        events_fd: its readiness says that the group may have become empty; with `events_mask` for epoll.
    """

    name: str
    clone_into_fd: int | None
    events_fd: int
    events_mask: int

    @abstractmethod
    def join(self, *, cloned_into: bool) -> None:
        """Move the calling process in. Called by the job's own process before anything else it does.

        Args:
            cloned_into: the clone has done what `clone_into_fd` is for.
        """

    @abstractmethod
    def apply(self, limits: Limits) -> None:
        """Set limits; those that are not given stay as they are.

        Raises:
            OSError: the kernel refused; the error names the file.
        """

    @property
    @abstractmethod
    def memory_dir(self) -> CgroupDir:
        """Where the limits of memory are.

        Raises:
            FileNotFoundError: there are none.
        """

    @abstractmethod
    def apply_memory(self, directory: CgroupDir, limits: Limits) -> None:
        """Set limits of memory and swap by `memory_dir`, which another process may have under another number.

        Raises:
            OSError: the kernel refused; the error names the file.
        """

    @abstractmethod
    def lift(self, limits: Limits) -> None:
        """Take away the limits that are given here, whatever their values.

        Raises:
            OSError: the kernel refused; the error names the file.
        """

    def lacking(self, limit: str) -> str:  # noqa: ARG002 - most groups can be given any
        """Why the group can't be given a limit of this kind, though the hierarchy has it; empty if it can."""
        return ""

    @abstractmethod
    def limits(self, disk: str | None) -> Limits:
        """The limits as the kernel has them; those of IO for this disk, `MAJOR:MINOR`.

        Raises:
            OSError: the kernel does not tell, or the group is gone.
        """

    @abstractmethod
    def limit_fds(self) -> tuple[int, ...]:
        """The directories whose files the limits are in."""

    @abstractmethod
    def populated(self) -> bool:
        """True while a process of the group is alive."""

    def command_pid(self, cloned: int) -> int:
        """The process that executes the command, of the one that was cloned: most groups put none between them."""
        return cloned

    def signal_command(self, cloned: int, pid: int, signum: int) -> None:  # noqa: ARG002 - it is the same one
        """Send a signal to the process that executes the command, and to none that got its pid meanwhile.

        Args:
            cloned: the pidfd of the process that was cloned.
            pid: as `command_pid` has told.
            signum: which.

        Raises:
            ProcessLookupError: it is not there any more.
            OSError: the kernel refuses.
        """
        signal.pidfd_send_signal(cloned, signum)

    @abstractmethod
    def signal_all(self, *signums: int) -> None:
        """Send these signals to every process that is in the group now."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL every process of the group, those that are being forked included."""

    @abstractmethod
    def usage(self) -> Usage:
        """What the group has used so far."""

    @abstractmethod
    def remove(self) -> None:
        """Remove the empty group, with what groups the job has made in it, and let go of its descriptors.

        Raises:
            OSError: it can't be removed; the descriptors are kept.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the descriptors and leave the group as it is."""


class Hierarchy(ABC):
    """Where the jobs' groups are made.

    Attributes:
        mode: `v2`, `v1`, `hybrid` or `none`.
        parent: the cgroup that all of it is below, from the mount point; empty without cgroups.
        support: each kind of limit there is.
    """

    mode: str
    parent: str
    support: tuple[Support, ...]

    def cpus(self) -> str:
        """The CPUs that a job can be given now, as cpuset(7) lists them.

        Raises:
            OSError: the kernel does not tell.
        """
        return units.format_cpu_list(os.sched_getaffinity(0))

    @abstractmethod
    def create(self, name: str, limits: Limits) -> Group:
        """Make a group with these limits; nothing is left behind when that fails.

        Raises:
            OSError: the kernel refused; the error names the file.
        """

    @abstractmethod
    def adopt(self, name: str) -> Group:
        """The group that an earlier life made.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def discard(self, name: str) -> None:
        """Remove what there is of a group that was made, or removed, in part, and so holds no process.

        Raises:
            OSError: it could not be removed.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """The groups that are there."""

    @abstractmethod
    def remove(self) -> None:
        """Remove the hierarchy's own groups, if no job's is left in them."""

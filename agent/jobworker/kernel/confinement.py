"""Going into a sandbox: what a job's process does to itself before it executes the command.

In this order, since each step takes away what the ones before it need: namespaces and mounts while it is root,
what it may become, the user (`spawn` sees to that), the filter of system calls last of all.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from jobworker.kernel import landlock, mounts, syscalls
from jobworker.kernel.seccomp import Filter
from jobworker.sandbox import Part

_NAMESPACES = {
    Part.READ_ONLY_SYSTEM: syscalls.CLONE_NEWNS,
    Part.PRIVATE_TMP: syscalls.CLONE_NEWNS,
    Part.OWN_PROCESSES: syscalls.CLONE_NEWNS,
    Part.IPC_NAMESPACE: syscalls.CLONE_NEWIPC,
    Part.UTS_NAMESPACE: syscalls.CLONE_NEWUTS,
    Part.CGROUP_NAMESPACE: syscalls.CLONE_NEWCGROUP,
    Part.NETWORK_NAMESPACE: syscalls.CLONE_NEWNET,
}
# More than any kernel has: prctl(2) tells where they end.
_CAPABILITIES = 64
_TMP = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - the names that are replaced

# netdevice(7): of an interface, given by name.
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_IFREQ = struct.Struct("16sh22x")

Begin = Callable[[str], None]


def private_directories() -> tuple[str, ...]:
    """Those that a job has of its own, by their real paths: some hosts have one for several."""
    found = (os.path.realpath(path) for path in _TMP)
    return tuple(dict.fromkeys(path for path in found if os.path.isdir(path)))


@dataclass(frozen=True, slots=True)
class Confinement:
    """A sandbox to go into.

    Attributes:
        parts: that are applied.
        own_directory: the job's, which is its working directory.
        writable: directories that stay writable besides, by their real paths.
        private: directories that it has of its own.
        filter: of system calls, where that is a part.
    """

    parts: frozenset[Part]
    own_directory: str
    writable: tuple[str, ...]
    private: tuple[str, ...]
    filter: Filter | None = None

    def isolate(self, begin: Begin) -> None:
        """Go into namespaces of its own, and see in them what the job shall see.

        The working directory is the job's own one afterwards, if it was before.

        Args:
            begin: called with the name of each step that is not certain to succeed.

        Raises:
            OSError: at the step that was begun last.
        """
        if not (flags := self._namespaces()):
            return
        begin("namespaces")
        syscalls.unshare(flags)
        if flags & syscalls.CLONE_NEWNS:
            begin("mounts")
            self._mount()
        if Part.NETWORK_NAMESPACE in self.parts:
            begin("loopback")
            _bring_up_loopback()

    def _namespaces(self) -> int:
        flags = 0
        for part in self.parts:
            flags |= _NAMESPACES.get(part, 0)
        return flags

    def _mount(self) -> None:
        kept = (self.own_directory, *self.writable)
        trees = [(mounts.clone(path, attributes=mounts.NOSUID | mounts.NODEV), path) for path in kept]
        mounts.restrict_all((mounts.READ_ONLY if Part.READ_ONLY_SYSTEM in self.parts else 0) | mounts.NOSUID)
        if Part.PRIVATE_TMP in self.parts:
            for path in self.private:
                mounts.attach(mounts.detached("tmpfs", mounts.NOSUID | mounts.NODEV, mode="1777"), path)
        if Part.OWN_PROCESSES in self.parts:
            attributes = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC
            mounts.attach(mounts.detached("proc", attributes, hidepid="invisible"), "/proc")
        for tree, path in trees:
            if path.startswith(tuple(f"{private}/" for private in self.private)):
                os.makedirs(path, exist_ok=True)
            mounts.attach(tree, path)
        os.fchdir(trees[0][0])

    def renounce(self, begin: Begin) -> None:
        """Give up what rights could be had again, while still root.

        Raises:
            OSError: at the step that was begun last.
        """
        if Part.NO_NEW_PRIVILEGES in self.parts:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        if Part.LANDLOCK in self.parts:
            begin("landlock")
            landlock.restrict(landlock.version(), (self.own_directory, *self.writable, *self.private))
        if Part.NO_CAPABILITIES in self.parts:
            begin("capabilities")
            _empty_bounding_set()

    def seal(self, begin: Begin) -> None:
        """The rest, as the job's user.

        Raises:
            OSError: at the step that was begun last.
        """
        if Part.NO_CAPABILITIES in self.parts:
            begin("capabilities")
            syscalls.drop_capabilities()
        if self.filter:
            begin("system calls")
            self.filter.load()


def _empty_bounding_set() -> None:
    if os.geteuid() != 0:
        # It may not, and has nothing that could raise it either.
        return
    for number in range(_CAPABILITIES):
        try:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
        except OSError:
            if number == 0:
                raise
            return


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", _IFF_UP))

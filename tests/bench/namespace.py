"""A mount namespace without the cgroup2 mount of a hybrid host, from which programs can be started.

crun refuses a host that has controllers in both of its hierarchies; without the v2 mount it takes it for v1.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

from jobworker.kernel.cgroup import detect
from support.agent import DEADLINE

_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_libc = ctypes.CDLL(None, use_errno=True)


def cgroup2_in_the_way() -> str | None:
    """The mount point of a cgroup2 that has controllers, beside a v1 that has others."""
    found = detect.cgroup_mounts()
    if not found.v1 or not found.v2:
        return None
    with open(f"{found.v2}/cgroup.controllers", encoding="ascii") as file:
        return found.v2 if file.read().strip() else None


class MountNamespace:
    """Held by a process that does nothing else."""

    def __init__(self, without: str) -> None:
        script = f"umount '{without}' && echo made && exec cat"
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout
        if not self._holder.stdout.readline():
            self._holder.communicate(timeout=DEADLINE)
            raise OSError(f"no mount namespace without {without}")
        self._inside = os.open(f"/proc/{self._holder.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._outside = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._directory = os.open(".", os.O_PATH | os.O_CLOEXEC)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """What the calling thread starts meanwhile lives in the namespace; a dozen microseconds."""
        _check(_libc.unshare(_CLONE_FS))
        _check(_libc.setns(self._inside, _CLONE_NEWNS))
        try:
            yield
        finally:
            _check(_libc.setns(self._outside, _CLONE_NEWNS))
            # setns leaves the thread in the root directory.
            os.fchdir(self._directory)

    def close(self) -> None:
        for fd in (self._inside, self._outside, self._directory):
            os.close(fd)
        self._holder.communicate(timeout=DEADLINE)


def _check(result: int) -> None:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))

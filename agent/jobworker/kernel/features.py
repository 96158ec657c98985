"""What the running kernel can do of what the agent makes use of, each tried out.

Sandboxes are tried out elsewhere (`supervisor/isolation.py`), cgroups by making one.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

from jobworker.kernel import beneath, pidfd, syscalls


def why_not(attempt: Callable[[], None]) -> str:
    """Why a feature is not there; empty if it is."""
    try:
        attempt()
    except OSError as error:
        return because(error)
    return ""


def because(error: OSError) -> str:
    """What has failed at what, to be told as a reason."""
    name = errno.errorcode.get(error.errno or 0, "error")
    return f"{error.filename or 'the kernel'}: {name}, {error.strerror}"


def clone3(cgroup_fd: int | None) -> None:
    """A process is made with its pidfd, in a cgroup if one is given.

    Raises:
        OSError: not here.
    """
    flags = 0 if cgroup_fd is None else syscalls.CLONE_INTO_CGROUP
    pid, fd = syscalls.clone3(flags, signal.SIGCHLD, cgroup_fd or 0)
    if pid == 0:
        os._exit(0)
    os.close(fd)
    os.waitpid(pid, 0)


def open_beneath() -> None:
    """A file is opened without following a link. Raises OSError: not here."""
    top = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(beneath.open_directory(top, "proc"))
    finally:
        os.close(top)


def tell_exit() -> None:
    """A pidfd tells how a process ended that is nobody's child any more. Raises OSError: not here."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    fd = os.pidfd_open(child)
    try:
        os.waitpid(child, 0)
        pidfd.end(fd)
    finally:
        os.close(fd)

"""A job in a PID namespace of its own; pid_namespaces(7).

The namespace's init is a process of ours, not the command: an init is not ended by signals that it does not
handle, and an exit code must be the command's own. The command is cloned into the namespace beside it, and is the
supervisor's child like any other. The init reaps what the command leaves behind, and ends when all of that has.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterator

from jobworker.kernel import oom, syscalls
from jobworker.kernel.cgroup.base import Group

# Milliseconds, of which a process that has just been cloned takes a few.
_END_WAIT = 1000


@contextlib.contextmanager
def entered(group: Group) -> Iterator[socket.socket]:
    """A new namespace in which the next process that this one clones will be.

    Yields:
        What that process has to `tell` its pidfd.

    Raises:
        OSError: there can't be one.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        flags = syscalls.CLONE_CLEAR_SIGHAND | syscalls.CLONE_NEWPID | syscalls.CLONE_PARENT
        if group.clone_into_fd is not None:
            flags |= syscalls.CLONE_INTO_CGROUP
        # A child of the keeper, which reaps what nobody waits for.
        pid, pidfd = syscalls.clone3(flags, 0, group.clone_into_fd or 0)
        if pid == 0:
            _be_init(theirs.fileno(), group)
        try:
            own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(pidfd, syscalls.CLONE_NEWPID)
                try:
                    yield ours
                finally:
                    _come_back(own)
            finally:
                os.close(own)
        except OSError:
            _end(pidfd)
            raise
        finally:
            os.close(pidfd)


def _end(pidfd: int) -> None:
    # It has nobody to live for; what is undone next is the group that it is in.
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll(_END_WAIT)


def _come_back(own: int) -> None:
    try:
        syscalls.setns(own, syscalls.CLONE_NEWPID)
    except OSError:
        # Whatever else this process cloned would be in there: the keeper starts one that is where it should be.
        os._exit(1)


def tell(init: socket.socket, pidfd: int) -> None:
    """As the command's process: have the init know whom it lives for.

    Raises:
        OSError: there is no init.
    """
    socket.send_fds(init, [b"main"], [pidfd])


def _be_init(link: int, group: Group) -> None:
    """Never returns."""
    try:
        syscalls.set_name("jw-init")
        group.join(cloned_into=group.clone_into_fd is not None)
        os.setsid()
        oom.reset_score()
        os.dup2(link, 0)
        syscalls.close_range(1)
        # Its memory is the supervisor's, with what other jobs were given, and a job that sees it may be root's.
        # Who looks into it needs capabilities that no job has (ptrace(2)), for those that it keeps and for this.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        # What is not ours to wait for is not to stay as a zombie.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with socket.socket(fileno=0) as told:
            _, fds, _, _ = socket.recv_fds(told, 16, 1)
        if fds:
            poll = select.poll()
            poll.register(fds[0], select.POLLIN)
            poll.poll()
            # It has ended, so what it had started is ours now: wait for the last of it.
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.waitpid(-1, 0)
    finally:
        os._exit(0)

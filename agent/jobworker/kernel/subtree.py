"""Holding a job together without a cgroup: below an init of its own.

For hosts where an ordinary user has no cgroup. Each job gets a small init, a fork of the supervisor that is a
child subreaper (prctl(2)): whatever the job forks, however often, stays below it. It ends when the last
descendant has, with the status of the job's main process. Nothing is limited, and a process that may signal
the init (the job runs as the same user) can get away: `support` says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal

from jobworker.jobs import Usage
from jobworker.kernel import syscalls
from jobworker.kernel.cgroup.base import Group, Hierarchy, unsupported
from jobworker.kernel.cgroup.files import CgroupDir
from jobworker.limits import BY_NAME, Limits

# A tree that forks while it is being stopped is caught within a few passes, unless it outruns us for good.
_STOP_PASSES = 1000


class SubtreeGroup(Group):
    """The descendants of one init, once `init_is` has said which process that is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.clone_into_fd = None
        self.events_mask = select.EPOLLIN
        self.events_fd = -1
        # Where the pidfd will be: once there is an init, there shall be no want of a descriptor.
        self._place = os.open("/", os.O_PATH | os.O_CLOEXEC)
        self._init = 0

    def init_is(self, pid: int, pidfd: int) -> None:
        self._init, self.events_fd = pid, os.dup2(pidfd, self._place, inheritable=False)

    def join(self, *, cloned_into: bool) -> None:  # noqa: ARG002 - there is no cgroup to be cloned into
        """Become the job's init; only the process that shall run the command returns."""
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        main = os.fork()
        if main:
            _be_init(main)

    def limits(self, disk: str | None) -> Limits:  # noqa: ARG002 - there are none
        return Limits()

    def populated(self) -> bool:
        if self.events_fd < 0:
            return False
        poll = select.poll()
        poll.register(self.events_fd, select.POLLIN)
        return not poll.poll(0)

    def command_pid(self, cloned: int) -> int:
        # What it has left behind comes behind it in the list.
        return next(iter(_children(cloned)), 0)

    def signal_command(self, cloned: int, pid: int, signum: int) -> None:  # noqa: ARG002 - that is the init
        if not pid:
            raise ProcessLookupError
        pidfd = os.pidfd_open(pid)
        try:
            # The init has not reaped it, so that the pidfd refers to it.
            if pid not in _children(self._init):
                raise ProcessLookupError
            signal.pidfd_send_signal(pidfd, signum)
        finally:
            os.close(pidfd)

    def signal_all(self, *signums: int) -> None:
        for pid in self._descendants():
            with contextlib.suppress(ProcessLookupError):
                for signum in signums:
                    os.kill(pid, signum)

    def kill(self) -> None:
        stopped: set[int] = set()
        for _ in range(_STOP_PASSES):
            fresh = set(self._descendants()) - stopped
            if not fresh:
                break
            stopped |= fresh
            for pid in fresh:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
        self.signal_all(signal.SIGKILL)

    def apply(self, limits: Limits) -> None:
        pass

    @property
    def memory_dir(self) -> CgroupDir:
        raise FileNotFoundError(errno.ENOENT, "there is no cgroup")

    def apply_memory(self, directory: CgroupDir, limits: Limits) -> None:
        pass

    def lift(self, limits: Limits) -> None:
        pass

    def limit_fds(self) -> tuple[int, ...]:
        return ()

    def usage(self) -> Usage:
        return Usage()

    def remove(self) -> None:
        self.close()

    def close(self) -> None:
        if self._place >= 0:
            os.close(self._place)
            self._place = self.events_fd = -1

    def _descendants(self) -> list[int]:
        found, queue = [], _children(self._init)
        while queue:
            pid = queue.pop()
            found.append(pid)
            queue.extend(_children(pid))
        return found


def _children(pid: int) -> list[int]:
    """The children of all threads of a process; none of one that is gone."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                children += [int(text) for text in file.read().split()]
    return children


def _be_init(main: int) -> None:
    """Reap until nothing is left below, then end as the main process did."""
    syscalls.close_range(0)
    # No terminal's, and nobody's to end: the job would have no one that holds it together.
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    status = 0
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, ended = os.waitpid(-1, 0)
            if pid == main:
                status = ended
    if os.WIFSIGNALED(status):
        _end_by(os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def _end_by(signum: int) -> None:
    # A core would be of the supervisor's memory.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    if signum != signal.SIGKILL:
        signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signum})


class SubtreeHierarchy(Hierarchy):
    """No hierarchy at all: `support` gives the reason for each limit."""

    def __init__(self, reason: str) -> None:
        self.mode = "none"
        self.parent = ""
        self.support = tuple(unsupported(name, reason) for name in BY_NAME)

    def create(self, name: str, limits: Limits) -> SubtreeGroup:  # noqa: ARG002 - none is supported
        return SubtreeGroup(name)

    def adopt(self, name: str) -> SubtreeGroup:
        return SubtreeGroup(name)

    def discard(self, name: str) -> None:
        pass

    def names(self) -> list[str]:
        return []

    def remove(self) -> None:
        pass

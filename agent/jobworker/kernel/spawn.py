"""Starting a job's process, in its group before its first instruction.

The parent clones itself; the child is this same program until it executes the job's command, so whatever it
does must be safe in a copy of a single-threaded process. It tells each step through a close-on-exec pipe as it
begins it, so that one which does not come to an end has a name too, and with what errno one has failed. When the
command is executed the pipe closes, as when the process ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jobworker.errors import ProtocolError
from jobworker.kernel import oom, pid_namespace, pidfd, syscalls
from jobworker.kernel.cgroup.base import Group
from jobworker.kernel.confinement import Confinement
from jobworker.sandbox import Part

_REPORT_FD = 3
# Python ignores these in itself, and what is ignored stays so through exec.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
# Errors of clone3 that mean "not on this kernel": try the portable way.
_NO_CLONE3 = (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP)

_NO_SIGNALS: frozenset[int] = frozenset()

# linux/sched.h: as told by proc_pid_stat(5).
_PF_FORKNOEXEC = 0x40
_STAT_FLAGS = 6

# More than a child tells.
REPORT_SIZE = 4096
# What a process that could not execute its command exits with, like a shell's.
NOT_EXECUTED = 127


@dataclass(frozen=True, slots=True)
class User:
    """Whose rights a process takes on.

    Attributes:
        groups: besides `gid`.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """What to execute, and as whom.

    Attributes:
        paths: the files to try, in this order; gone through in the new process, since a client says how many
            there are.
        own_dir_fd: the job's own work directory, entered before the job's rights are taken on.
        confinement: the sandbox that it is executed in.
        workdir: a directory to enter with those rights instead; empty for none.
        user: to run as; None keeps the agent's own.
        open_files: the soft and hard RLIMIT_NOFILE.
    """

    paths: Iterable[bytes]
    argv: tuple[bytes, ...]
    env: dict[bytes, bytes]
    own_dir_fd: int
    confinement: Confinement
    workdir: str
    user: User | None
    open_files: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Pipes:
    """The child's ends: what becomes its descriptors 0 to 2, and the report."""

    stdin: int
    stdout: int
    stderr: int
    report: int


@dataclass(frozen=True, slots=True)
class Report:
    """What the child said.

    Attributes:
        pid: of the process that runs (or was to run) the command, as itself sees it; 0 if that was not said yet.
        step: that was begun last; empty if it said nothing at all.
        errno: with which that step has failed; None if it has not.
    """

    pid: int
    step: str
    errno: int | None


def forget_inherited_signals() -> None:
    """Undo what whoever started the agent has ignored or blocked (nohup, say), since jobs would inherit it."""
    signal.pthread_sigmask(signal.SIG_SETMASK, _NO_SIGNALS)
    for signum in signal.valid_signals():
        if signum not in _IGNORED and signal.getsignal(signum) == signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)


def start(command: Command, pipes: Pipes, group: Group, announce: Callable[[int], None]) -> tuple[int, int]:
    """Clone the process that will execute the command.

    Args:
        command: to be executed.
        pipes: the new process's ends.
        group: that it is to be in.
        announce: called in the new process with its pidfd, before anything else: if it raises OSError, the
            command is not executed.

    Returns:
        its pid and its pidfd; the report tells what came of it.

    Raises:
        OSError: no process could be made.
    """
    if Part.PID_NAMESPACE not in command.confinement.parts:
        return _start(command, pipes, group, announce)

    with pid_namespace.entered(group) as init:

        def tell_both(pidfd: int) -> None:
            announce(pidfd)
            pid_namespace.tell(init, pidfd)

        return _start(command, pipes, group, tell_both)


def _start(command: Command, pipes: Pipes, group: Group, announce: Callable[[int], None]) -> tuple[int, int]:
    pid, pidfd, cloned_into = _clone(group.clone_into_fd)
    if pid == 0:
        _Child(command, pipes).run(group, announce, cloned_into=cloned_into)
    return pid, pidfd


def _clone(cgroup_fd: int | None) -> tuple[int, int, bool]:
    # A signal that reaches the child early must end it, not run a handler that writes to the parent's loop.
    flags = syscalls.CLONE_CLEAR_SIGHAND
    try:
        if cgroup_fd is None:
            return (*syscalls.clone3(flags, signal.SIGCHLD), False)
        return (*syscalls.clone3(flags | syscalls.CLONE_INTO_CGROUP, signal.SIGCHLD, cgroup_fd), True)
    except OSError as error:
        if error.errno not in _NO_CLONE3:
            raise
    return (*_fork(), False)


def _fork() -> tuple[int, int]:
    """A child where there is no clone3: its pid and pidfd, and in itself, once the parent has these, 0 and -1.

    Raises:
        OSError: there is none, or was none with a pidfd: nothing has been done in it.
    """
    # What the child waits at makes room for its pidfd as it is closed here.
    waiting, knowing = os.pipe2(os.O_CLOEXEC)
    with open(knowing, "wb", buffering=0) as known:
        with open(waiting, "rb", buffering=0) as waits:
            child = os.fork()
            if child == 0:
                known.close()
                if not waits.read(1):
                    os._exit(NOT_EXECUTED)
                return 0, -1
        opened = pidfd.of_child(child)
        # Somebody may have killed it.
        with contextlib.suppress(BrokenPipeError):
            known.write(b"x")
    return child, opened


class _Child:
    """The cloned process, until it executes the command."""

    def __init__(self, command: Command, pipes: Pipes) -> None:
        self._command = command
        self._pipes = pipes
        self._report = pipes.report

    def run(self, group: Group, announce: Callable[[int], None], *, cloned_into: bool) -> None:
        """Never returns."""
        try:
            self._begin("keeper")
            announce(os.pidfd_open(os.getpid()))
            self._begin("cgroup")
            group.join(cloned_into=cloned_into)
            self._tell("pid", os.getpid())
            self._prepare()
            self._begin("exec")
            # Last of all: SIGPIPE would end this process where nobody reads any more what it tells.
            _reset_signals()
            _exec(self._command)
        except OSError as error:
            self._tell("errno", error.errno or 0)
        finally:
            os._exit(NOT_EXECUTED)

    def _begin(self, step: str) -> None:
        self._tell("step", step)

    def _tell(self, what: str, value: str | int) -> None:
        # The supervisor may have died; the next one takes the job over as it is.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._report, f"{what} {value}\n".encode("ascii"))

    def _prepare(self) -> None:
        command, confinement = self._command, self._command.confinement
        self._begin("session")
        os.setsid()
        os.umask(0o022)
        # The job's own directory may lie where only the agent can go.
        os.fchdir(command.own_dir_fd)
        # Mounts may be waited for without an end, and nobody else is to wait for the supervisor's lock and pipes.
        self._begin("descriptors")
        self._arrange_descriptors()
        confinement.isolate(self._begin)
        # Now that all of the supervisor's descriptors are closed: there may be more of them than a job may have.
        self._begin("resources")
        resource.setrlimit(resource.RLIMIT_NOFILE, command.open_files)
        oom.reset_score()
        # An agent that the scheduler favours answers sooner; its jobs are not for that.
        os.setpriority(os.PRIO_PROCESS, 0, max(0, os.getpriority(os.PRIO_PROCESS, 0)))
        confinement.renounce(self._begin)
        self._begin("user")
        _become(command.user)
        self._begin("chdir")
        if command.workdir:
            os.chdir(command.workdir)
        confinement.seal(self._begin)

    def _arrange_descriptors(self) -> None:
        # The supervisor's own descriptors 0 to 2 are open, so none of the pipes is in the way of these.
        os.dup2(self._pipes.stdin, 0)
        os.dup2(self._pipes.stdout, 1)
        os.dup2(self._pipes.stderr, 2)
        os.dup2(self._pipes.report, _REPORT_FD, inheritable=False)
        self._report = _REPORT_FD
        syscalls.close_range(_REPORT_FD + 1)


def _become(user: User | None) -> None:
    if user is not None:
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)


def _reset_signals() -> None:
    for signum in _IGNORED:
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, _NO_SIGNALS)


def _exec(command: Command) -> None:
    """Try each path as execvp(3) does: a file that may not be executed does not end the search."""
    failure: OSError | None = None
    for path in command.paths:
        try:
            os.execve(path, command.argv, command.env)
        except (FileNotFoundError, NotADirectoryError) as error:
            failure = failure or error
        except PermissionError as error:
            failure = error
    if failure:
        raise failure


def read_report(data: bytes) -> Report:
    """Read what the child wrote.

    Raises:
        ProtocolError: no child of ours wrote this.
    """
    try:
        told = dict(line.split(" ", 1) for line in data.decode("ascii").splitlines())
        failed = told.get("errno")
        return Report(int(told.get("pid", 0)), told.get("step", ""), None if failed is None else int(failed))
    except ValueError:
        raise ProtocolError(f"{data[:80]!r} is not a report of a start") from None


def has_executed(pid: int) -> bool:
    """True if a child has executed a program since it was cloned, also when it has died and was not waited for."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # Behind the name, in which there may be anything.
        fields = file.read().rpartition(b")")[2].split()
    return not int(fields[_STAT_FLAGS]) & _PF_FORKNOEXEC

"""Starting a job's process, in its group before its first instruction.

The parent clones itself; the child is this same program until it executes the job's command, so whatever it
does must be safe in a copy of a single-threaded process. Each step is named; the first that fails is reported
through a close-on-exec pipe as `<step> <errno>`, and the pipe closes without a report when exec succeeded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass

from jobworker.errors import ProtocolError
from jobworker.kernel import syscalls
from jobworker.kernel.cgroup.base import Group

_REPORT_FD = 3
# Python ignores these in itself, and what is ignored stays so through exec.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
# Errors of clone3 that mean "not on this kernel": try the portable way.
_NO_CLONE3 = (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP)

_NO_SIGNALS: frozenset[int] = frozenset()

REPORT_SIZE = 256
# What a process that could not execute its command exits with, like a shell's.
NOT_EXECUTED = 127


@dataclass(frozen=True, slots=True)
class Command:
    """What to execute, and as whom.

    Attributes:
        paths: the files to try, in this order.
        own_dir_fd: the job's own work directory, entered before the job's rights are taken on.
        workdir: a directory to enter with those rights instead; empty for none.
        uid: user and group id; None keeps the agent's own.
        open_files: the soft and hard RLIMIT_NOFILE.
    """

    paths: tuple[bytes, ...]
    argv: tuple[bytes, ...]
    env: dict[bytes, bytes]
    own_dir_fd: int
    workdir: str
    uid: int | None
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
        pid: of the process that runs (or was to run) the command; 0 if it said nothing at all.
        step: that failed; empty if none did.
        errno: of that step.
    """

    pid: int
    step: str
    errno: int


def set_name(name: str) -> None:
    """What ps and top call this process (proc(5), comm): up to 15 bytes."""
    with open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(name)


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
    pid, pidfd, cloned_into = _clone(group.clone_into_fd)
    if pid == 0:
        _child(command, pipes, group, announce, cloned_into=cloned_into)
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
    pid = os.fork()
    return pid, os.pidfd_open(pid) if pid else -1, False


def _child(
    command: Command, pipes: Pipes, group: Group, announce: Callable[[int], None], *, cloned_into: bool
) -> None:
    report, step = pipes.report, "keeper"
    try:
        announce(os.pidfd_open(os.getpid()))
        step = "cgroup"
        group.join(cloned_into=cloned_into)
        os.write(report, b"%d\n" % os.getpid())
        step = "session"
        os.setsid()
        os.umask(0o022)
        # The job's own directory may lie where only the agent can go.
        os.fchdir(command.own_dir_fd)
        step = "descriptors"
        report = _arrange_descriptors(pipes)
        step = "resources"
        resource.setrlimit(resource.RLIMIT_NOFILE, command.open_files)
        _reset_oom_score()
        step = "user"
        _become(command.uid)
        step = "chdir"
        if command.workdir:
            os.chdir(command.workdir)
        step = "exec"
        _reset_signals()
        _exec(command)
    except OSError as error:
        os.write(report, b"%s %d" % (step.encode(), error.errno or 0))
    finally:
        os._exit(NOT_EXECUTED)


def _arrange_descriptors(pipes: Pipes) -> int:
    # The supervisor's own descriptors 0 to 2 are open, so none of the pipes is in the way of these.
    os.dup2(pipes.stdin, 0)
    os.dup2(pipes.stdout, 1)
    os.dup2(pipes.stderr, 2)
    os.dup2(pipes.report, _REPORT_FD, inheritable=False)
    syscalls.close_range(_REPORT_FD + 1)
    return _REPORT_FD


def _reset_oom_score() -> None:
    # The agent protects itself from the OOM killer; its jobs are not to inherit that. What a service manager has
    # raised for an ordinary user, that user may not lower, and the job keeps it.
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    with contextlib.suppress(PermissionError):
        os.write(fd, b"0")
    os.close(fd)


def _become(uid: int | None) -> None:
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


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
        pid, _, failure = data.decode("ascii").partition("\n")
        step, _, number = failure.partition(" ")
        return Report(int(pid or 0), step, int(number or 0))
    except ValueError:
        raise ProtocolError(f"{data[:80]!r} is not a report of a start") from None

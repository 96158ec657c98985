"""The process that reads a file of the administrator's: as nobody, started by the supervisor, which sees no YAML.

What it is given is the open file, and what comes back is what that holds as canonical JSON, decoded strictly.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from jobworker import codec
from jobworker.errors import HostFault, InvalidField, JobWorkerError
from jobworker.kernel import pidfd

V = TypeVar("V")
R = TypeVar("R")

_PYTHON = ("-I", "-m", "jobworker.cli.worker_agent")
PATIENCE = 15.0
_MAX_SAID = 4096
# What `worker-agent` ends with when it has found the file to be wrong.
_WRONG = 2
# Errors of opening a file that say nothing of the file.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Source(Generic[V, R]):
    """A kind of file that is read.

    Attributes:
        name: of the setting that says where it is, of the commands of `worker-agent` that read it, and of what is
            kept of it.
        power: what somebody could decide who could write it.
        holds: its type, once it is read.
        most_bytes: that it can take as canonical JSON.
        ready: makes it ready for use; raises InvalidField if it is not to be used.
        stored: the type of what is kept: the file's path, its stamp, and under the source's name what it held.
    """

    name: str
    power: str
    holds: type[V]
    most_bytes: int
    ready: Callable[[V], R]
    stored: type[Any]


class Reading(Generic[V, R]):
    """One reading.

    Attributes:
        pidfd: readable once it has ended.
        pipes: what it says, until the end of which somebody has to call `pump`.

    Raises:
        InvalidField: the file is not to be used.
        HostFault: it could not be looked at, or no process be started: another time it may be good.
    """

    def __init__(self, source: Source[V, R], path: str) -> None:
        self._source = source
        self._path = path
        self._operation = f"reading {path}"
        self._most = source.most_bytes + _MAX_SAID
        self.pipes: dict[int, bytearray] = {}
        try:
            file = self._open()
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise HostFault.of(self._operation, error) from error
            raise self._wrong(os.strerror(error.errno or 0)) from error
        try:
            self._spawn(file)
        except OSError as error:
            raise HostFault.of(self._operation, error) from error
        finally:
            os.close(file)

    def _wrong(self, problem: str) -> InvalidField:
        # Each mistake of a file is one that can be gone to.
        lines = (f"{self._path}: {line}" for line in problem.splitlines())
        return InvalidField(self._source.name, "\n".join(lines))

    def _open(self) -> int:
        """Open the file if nobody but root and the agent's own user can have written it or put it there.

        Raises:
            InvalidField: somebody else can.
            OSError: it, or a directory that leads to it, can't be looked at.
        """
        fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            problem = _mistrusted(fd, self._path, self._source.power)
        except OSError:
            os.close(fd)
            raise
        if problem:
            os.close(fd)
            raise self._wrong(problem)
        return fd

    def _spawn(self, file: int) -> None:
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as childs:
            self._out, out_w = _pipe(undo, childs)
            self._err, err_w = _pipe(undo, childs)
            ends = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((file, out_w, err_w))]
            command = [sys.executable, *_PYTHON, self._source.name, "canonical"]
            pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=ends)
            self.pidfd = pidfd.of_child(pid)
            self.pipes = {self._out: bytearray(), self._err: bytearray()}
            undo.pop_all()

    def _close_pipes(self) -> None:
        for fd in (self._out, self._err):
            os.close(fd)

    def pump(self, fd: int) -> bool:
        """Take in some of what it has said; False at the end."""
        try:
            return self._take(fd) > 0
        except BlockingIOError:
            return True

    def _take(self, fd: int) -> int:
        """Take in some; how many bytes it was. Raises BlockingIOError: it has said no more."""
        data, taken = os.read(fd, 65_536), self.pipes[fd]
        # Whatever the process has become: no more than such a file can take.
        taken += data[: max(0, self._most - len(taken))]
        return len(data)

    def kill(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def result(self) -> tuple[V, R]:
        """What the file holds, and that ready for use; to be called once, when the process has ended.

        Raises:
            InvalidField: nothing that could be used.
            HostFault: that could not be found out.
        """
        for fd, taken in self.pipes.items():
            with contextlib.suppress(BlockingIOError):
                while len(taken) < self._most and self._take(fd):
                    pass
        ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        self._close_pipes()
        os.close(self.pidfd)
        said = self.pipes[self._err].decode("utf-8", "replace")[-_MAX_SAID:].strip()
        if ended is None or ended.si_code != os.CLD_EXITED:
            late = f"its reader was killed, as any is that takes {PATIENCE:g} s"
            raise HostFault(self._operation, "ETIMEDOUT", late)
        if ended.si_status == _WRONG:
            raise self._wrong(said or "it cannot be used")
        if ended.si_status:
            raise HostFault(self._operation, f"exit status {ended.si_status}", said)
        try:
            value = codec.loads(self._source.holds, bytes(self.pipes[self._out]))
            return value, self._source.ready(value)
        except JobWorkerError as error:
            raise self._wrong(str(error)) from error


def read(source: Source[V, R], path: str) -> tuple[V, R]:
    """Read the file and wait for that; for a supervisor that starts, and looks after nothing yet.

    Raises:
        InvalidField: see `Reading`.
        HostFault: likewise.
    """
    process, deadline = Reading(source, path), time.monotonic() + PATIENCE
    poll, said = select.poll(), set(process.pipes)
    for fd in (*said, process.pidfd):
        poll.register(fd, select.POLLIN)
    while ready := poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        for fd in {fd for fd, _ in ready} & said:
            if not process.pump(fd):
                poll.unregister(fd)
        if any(fd == process.pidfd for fd, _ in ready):
            return process.result()
    process.kill()
    return process.result()


def _pipe(undo: contextlib.ExitStack, childs: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose reading end, ours, does not block; the writing end is the child's."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    undo.callback(os.close, reading)
    childs.callback(os.close, writing)
    os.set_blocking(reading, False)
    return reading, writing


def _mistrusted(fd: int, path: str, power: str) -> str:
    """Why a file is not to be read; empty if it is."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return "is not a file"
    if problem := _others(status, _OTHERS_WRITE):
        return f"{problem}, who could decide with it {power}; chown it to root, and chmod go-w"
    # Whoever can write one of these can put another file of root's in its place, an older one say.
    for directory in (*_above(os.path.abspath(path)), *_above(os.path.realpath(path))):
        status = os.stat(directory)
        # In a sticky one others can move what is theirs alone.
        if problem := _others(status, 0 if status.st_mode & stat.S_ISVTX else _OTHERS_WRITE):
            way = f"its directory {directory} {problem}, who could decide {power} by what they put there"
            return f"{way}; chown it to root, and chmod go-w"
    return ""


def _above(path: str) -> Iterator[str]:
    """The directories that lead to a file."""
    while path != (path := os.path.dirname(path)):
        yield path


def _others(status: os.stat_result, writable: int) -> str:
    """Who else has power over a file or a directory; empty if nobody has."""
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to the user {status.st_uid}"
    return "can be written by others" if status.st_mode & writable else ""

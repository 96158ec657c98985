"""The process that reads a file of the administrator's: as nobody, started by the supervisor, which sees no YAML.

What it is given is the open file, and what comes back is what that holds as canonical JSON, decoded strictly.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from jobworker import codec
from jobworker.errors import InvalidField, JobWorkerError

V = TypeVar("V")
R = TypeVar("R")

_PYTHON = ("-I", "-m", "jobworker.cli.worker_agent")
_PATIENCE = 15.0
_MAX_SAID = 4096
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
        InvalidField: the file is not to be used, or no process could be started.
    """

    def __init__(self, source: Source[V, R], path: str) -> None:
        self._source = source
        self._path = path
        self.pipes: dict[int, bytearray] = {}
        try:
            file = self._open()
            try:
                self._spawn(file)
            finally:
                os.close(file)
        except OSError as error:
            raise self._wrong(os.strerror(error.errno or 0)) from error

    def _wrong(self, problem: str) -> InvalidField:
        # Each mistake of a file is one that can be gone to.
        lines = (f"{self._path}: {line}" for line in problem.splitlines())
        return InvalidField(self._source.name, "\n".join(lines))

    def _open(self) -> int:
        """Open the file if nobody but the agent's own user can have written it.

        Raises:
            InvalidField: somebody else can.
        """
        fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        if problem := _mistrusted(os.fstat(fd), self._source.power):
            os.close(fd)
            raise self._wrong(problem)
        return fd

    def _spawn(self, file: int) -> None:
        out, out_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        err, err_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.pipes = {out: bytearray(), err: bytearray()}
        self._out, self._err = out, err
        ends = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((file, out_w, err_w))]
        try:
            for fd in (out_w, err_w):
                os.set_blocking(fd, True)
            command = [sys.executable, *_PYTHON, self._source.name, "canonical"]
            pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=ends)
            self.pidfd = os.pidfd_open(pid)
        except OSError:
            self._close_pipes()
            raise
        finally:
            os.close(out_w)
            os.close(err_w)

    def _close_pipes(self) -> None:
        for fd in (self._out, self._err):
            os.close(fd)

    def pump(self, fd: int) -> bool:
        """Take in what it has said; False at the end."""
        try:
            data = os.read(fd, 65_536)
        except BlockingIOError:
            return True
        said = self.pipes[fd]
        # Whatever the process has become: no more than such a file can take.
        said += data[: max(0, self._source.most_bytes + _MAX_SAID - len(said))]
        return bool(data)

    def kill(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def result(self) -> tuple[V, R]:
        """What the file holds, and that ready for use; to be called once, when the process has ended.

        Raises:
            InvalidField: nothing that could be used.
        """
        for fd in self.pipes:
            while self.pump(fd) and select.select([fd], [], [], 0)[0]:
                pass
        ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        self._close_pipes()
        os.close(self.pidfd)
        if ended is None or ended.si_code != os.CLD_EXITED or ended.si_status:
            said = self.pipes[self._err].decode("utf-8", "replace")[-_MAX_SAID:].strip()
            raise self._wrong(said or "it could not be read in time")
        try:
            value = codec.loads(self._source.holds, bytes(self.pipes[self._out]))
            return value, self._source.ready(value)
        except JobWorkerError as error:
            raise self._wrong(str(error)) from error


def read(source: Source[V, R], path: str) -> tuple[V, R]:
    """Read the file and wait for that; for a supervisor that starts, and looks after nothing yet.

    Raises:
        InvalidField: see `Reading`.
    """
    process, deadline = Reading(source, path), time.monotonic() + _PATIENCE
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


def _mistrusted(status: os.stat_result, power: str) -> str:
    """Why a file is not to be read; empty if it is."""
    if not stat.S_ISREG(status.st_mode):
        return "is not a file"
    if status.st_uid not in (0, os.geteuid()):
        return f"is the file of the user {status.st_uid}, who could decide with it {power}; chown it to root"
    if status.st_mode & _OTHERS_WRITE:
        return f"can be written by others, who could decide with it {power}; chmod go-w"
    return ""

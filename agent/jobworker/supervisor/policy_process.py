"""The process that reads the policy file: as nobody, started by the supervisor, which never sees any YAML.

What it is given is the open file, and what comes back are the rules as canonical JSON, decoded strictly.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import time

from jobworker import codec
from jobworker.errors import InvalidField, JobWorkerError
from jobworker.policy import MAX_POLICY_BYTES, Policy
from jobworker.rulebook import Rulebook

_COMMAND = ("-I", "-m", "jobworker.cli.worker_agent", "policy", "canonical")
_PATIENCE = 15.0
_MAX_SAID = 4096
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class PolicyProcess:
    """One reading.

    Attributes:
        pidfd: readable once it has ended.
        pipes: what it says, until the end of which somebody has to call `pump`.

    Raises:
        InvalidField: the file is not to be used, or no process could be started.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.pipes: dict[int, bytearray] = {}
        try:
            file = _open(path)
            try:
                self._spawn(file)
            finally:
                os.close(file)
        except OSError as error:
            raise self._wrong(os.strerror(error.errno or 0)) from error

    def _wrong(self, problem: str) -> InvalidField:
        return InvalidField("policy", f"{self._path}: {problem}")

    def _spawn(self, file: int) -> None:
        out, out_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        err, err_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.pipes = {out: bytearray(), err: bytearray()}
        self._out, self._err = out, err
        ends = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((file, out_w, err_w))]
        try:
            for fd in (out_w, err_w):
                os.set_blocking(fd, True)
            pid = os.posix_spawn(sys.executable, [sys.executable, *_COMMAND], os.environ, file_actions=ends)
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
        # Whatever the process has become: no more than a policy can take.
        said += data[: max(0, MAX_POLICY_BYTES + _MAX_SAID - len(said))]
        return bool(data)

    def kill(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def result(self) -> tuple[Policy, Rulebook]:
        """What the file holds; to be called once, when the process has ended.

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
            policy = codec.loads(Policy, bytes(self.pipes[self._out]))
            return policy, Rulebook(policy)
        except JobWorkerError as error:
            raise self._wrong(str(error)) from error


def read(path: str) -> tuple[Policy, Rulebook]:
    """Read the file and wait for that; for a supervisor that starts, and looks after nothing yet.

    Raises:
        InvalidField: see `PolicyProcess`.
    """
    process, deadline = PolicyProcess(path), time.monotonic() + _PATIENCE
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


def _open(path: str) -> int:
    """Open the file if nobody but the agent's own user can have written it.

    Raises:
        InvalidField: somebody else can.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    status = os.fstat(fd)
    problem = ""
    if not stat.S_ISREG(status.st_mode):
        problem = "is not a file"
    elif status.st_uid not in (0, os.geteuid()):
        problem = (
            f"is the file of the user {status.st_uid}, who could decide with it who may do what; chown it to root"
        )
    elif status.st_mode & _OTHERS_WRITE:
        problem = "can be written by others, who could decide with it who may do what; chmod go-w"
    if problem:
        os.close(fd)
        raise InvalidField("policy", f"{path}: {problem}")
    return fd

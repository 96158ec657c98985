"""The keeper: the supervisor's parent, which holds what must not die with it.

It is handed the read ends of each job's pipes before the job is made, and the job's pidfd after. When the
supervisor dies, nothing happens to the jobs: their pipes have a reader, and as a child subreaper (prctl(2)) the
keeper inherits and reaps their processes. It starts the supervisor again and hands everything back. It does
so little that it hardly ever changes and has next to nothing to fail at.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence

from jobworker.wire import keeping, sockets

# Between two starts of a supervisor that dies before it serves, in seconds.
_PAUSE = 0.5


class _Held:
    """What is held of one job."""

    def __init__(self, pipes: tuple[int, ...]) -> None:
        self.pipes = pipes
        self.pidfd = -1
        self.pid = 0
        self.end = keeping.RUNNING

    def descriptors(self) -> tuple[int, ...]:
        return (*self.pipes, self.pidfd) if self.pidfd >= 0 else self.pipes

    def close(self) -> None:
        for fd in self.descriptors():
            os.close(fd)


class Keeper:
    """Runs until the supervisor ends by itself."""

    def __init__(self, command: Sequence[str], ready_fd: int | None) -> None:
        self._command = command
        self._ready_fd = ready_fd
        self._held: dict[str, _Held] = {}
        self._unsent: deque[bytes] = deque()
        self._supervisor = 0
        self._was_ready = False
        self._link, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other.close()
        self._wakeup, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, _: object) -> None:
        if signum != signal.SIGCHLD and self._supervisor:
            os.kill(self._supervisor, signal.SIGTERM)

    def run(self) -> int:
        """Keep until the supervisor has ended for good; returns its exit status."""
        status = None
        self._start_supervisor()
        while status is None:
            self._wait()
            self._say_unsent()
            self._listen()
            status = self._reap()
        return status

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        if self._link.fileno() >= 0:
            poll.register(self._link, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        poll.poll()
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup, 4096)

    def _start_supervisor(self) -> None:
        if self._supervisor and not self._was_ready:
            time.sleep(_PAUSE)
        self._was_ready = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [*self._command, "--link-fd", str(theirs.fileno())]
        theirs.set_inheritable(True)
        if self._ready_fd is not None:
            command += ["--ready-fd", str(self._ready_fd)]
            os.set_inheritable(self._ready_fd, True)
        # Python ignores these two in itself; a program that it starts should not.
        defaults = (signal.SIGPIPE, signal.SIGXFSZ)
        self._supervisor = os.posix_spawn(sys.executable, command, os.environ, setsigdef=defaults)
        theirs.close()
        if self._ready_fd is not None:
            os.close(self._ready_fd)
            self._ready_fd = None
        self._link = ours
        self._hand_back()

    def _hand_back(self) -> None:
        # Blocking: a supervisor that has just started reads this before anything else.
        self._unsent.clear()
        with contextlib.suppress(OSError):
            for job_id, held in self._held.items():
                message = keeping.pack(keeping.HELD, job_id, held.end)
                sockets.send(self._link, message, held.descriptors())
            sockets.send(self._link, keeping.pack(keeping.HELD_ALL))
        self._link.setblocking(False)

    def _listen(self) -> None:
        """Take in all that the supervisor has said."""
        while self._link.fileno() >= 0:
            try:
                data, fds, _ = sockets.receive(self._link, keeping.SIZE)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", sockets.Descriptors()
            with fds:
                if data:
                    self._apply(*keeping.unpack(data)[:2], fds)
                else:
                    self._link.close()

    def _apply(self, kind: int, job_id: str, fds: sockets.Descriptors) -> None:
        held = self._held.get(job_id)
        if kind == keeping.HOLD_PIPES and held is None:
            self._held[job_id] = _Held(fds.take())
        elif kind == keeping.HOLD_PROCESS and held and len(fds) == 1:
            (held.pidfd,) = fds.take()
            held.pid = sockets.pid_of(held.pidfd)
        elif kind == keeping.READY:
            self._was_ready = True
        elif kind == keeping.RELEASE and held:
            self._held.pop(job_id).close()

    def _reap(self) -> int | None:
        """Reap what has ended; the supervisor's status if that is final."""
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
                if ended.si_pid == self._supervisor:
                    status = self._supervisor_ended(ended.si_code, ended.si_status)
                    if status is not None:
                        return status
                else:
                    self._job_ended(ended.si_pid, (ended.si_code, ended.si_status))
        return None

    def _supervisor_ended(self, code: int, status: int) -> int | None:
        # What it said before it died still counts: a job may have been made on the strength of it.
        self._listen()
        self._link.close()
        if code == os.CLD_EXITED and status in (0, keeping.EXIT_REFUSED):
            return status
        if not self._was_ready and not self._held:
            # It can't start, and nothing needs it: whoever started us shall know.
            return status or 1
        self._start_supervisor()
        return None

    def _job_ended(self, pid: int, end: tuple[int, int]) -> None:
        for job_id, held in self._held.items():
            if held.pid == pid:
                held.end = end
                self._unsent.append(keeping.pack(keeping.ENDED, job_id, end))
        self._say_unsent()

    def _say_unsent(self) -> None:
        with contextlib.suppress(OSError):
            while self._unsent and self._link.fileno() >= 0:
                sockets.send(self._link, self._unsent[0])
                self._unsent.popleft()

"""The process that executes a job's command, and how it ends."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable

from jobworker.kernel import pidfd
from jobworker.supervisor.keeper_link import End
from jobworker.supervisor.loop import Loop, Timer
from jobworker.wire import keeping, sockets

# Seconds after which to look again at what makes no event.
_LOOK_AGAIN = 0.01
STILL_TRACED = 0.2


class MainProcess:
    """Owns a pidfd.

    Args:
        fd: the pidfd.
        foreign: it is neither our child nor the keeper's, which it outlived.
        ended: called once, with how it ended.

    Attributes:
        end: how it ended; None for not yet.
    """

    def __init__(self, loop: Loop, fd: int, ended: Callable[[End], None], *, foreign: bool) -> None:
        self._loop = loop
        self.fd = fd
        self._ended = ended
        self._foreign = foreign
        self._again: Timer | None = None
        self.end: End | None = None

    def begin(self) -> None:
        """Watch over it."""
        self._loop.watch(self.fd, select.EPOLLIN, self._on_foreign if self._foreign else self._on_child)

    def _on_child(self) -> None:
        try:
            # The status stays there until it is on disk: should this process die in between, the keeper has it.
            ended = os.waitid(os.P_PIDFD, self.fd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            # Adopted: not our child but the keeper's, which will tell.
            self._loop.forget(self.fd)
            return
        self._loop.forget(self.fd)
        if ended:
            self.has_ended((ended.si_code, ended.si_status))
        else:
            # It is dead, and whoever traces it has not taken notice; that this is over makes no event (ptrace(2)).
            self._again = self._loop.call_after(STILL_TRACED, self._on_child)

    def _on_foreign(self) -> None:
        self._loop.forget(self.fd)
        try:
            end = pidfd.end(self.fd)
        except OSError:
            end = keeping.FOREIGN
        if end is None:
            # It is dead; that its parent has reaped it makes no event.
            self._again = self._loop.call_after(_LOOK_AGAIN, self._on_foreign)
        else:
            self.has_ended(end)

    def has_ended(self, end: End) -> None:
        """It has, as the keeper tells who has reaped it, or the kernel; who tells it first counts."""
        if self.end is None:
            self.end = end
            self._ended(end)

    @property
    def pid(self) -> int:
        """0 for one that is not there any more."""
        return max(0, sockets.pid_of(self.fd))

    def is_child(self) -> bool:
        """False for what an earlier life started: the keeper that died had inherited that."""
        try:
            os.waitid(os.P_PIDFD, self.fd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def reap(self) -> None:
        """Nobody needs its status any more."""
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self.fd, os.WEXITED | os.WNOHANG)

    def close(self) -> None:
        self._loop.forget(self.fd)
        if self._again:
            self._again.cancel()
        os.close(self.fd)

"""An upgrade in place: same process, same children, new code.

The code that is on disk now proves in a child that it starts and can read the present state. Then this process
executes it; the keeper, which holds what must outlive us, hands everything back as after a death, except that the
jobs are our children still. Jobs notice nothing, clients a connection that has to be made again.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

from jobworker.kernel import pidfd
from jobworker.supervisor.loop import Loop

# Of a slow machine under load, too: nothing waits for the proof but who has asked for the upgrade.
_PATIENCE = 100.0


class Proof:
    """A child that tries the code that is on disk now, without touching anything.

    Args:
        loop: that goes on meanwhile.
        command: of a program that exits with 0 if it can take over.
        done: called with what is wrong, or with None if nothing is.
    """

    def __init__(self, loop: Loop, command: list[str], done: Callable[[str | None], None]) -> None:
        self._loop = loop
        self._done = done
        self._said = b""
        try:
            self._start(command)
        except OSError as error:
            done(str(error))

    def _start(self, command: list[str]) -> None:
        self._reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        redirect = [(os.POSIX_SPAWN_DUP2, writing, 1), (os.POSIX_SPAWN_DUP2, writing, 2)]
        try:
            pid = os.posix_spawn(command[0], command, os.environ, file_actions=redirect)
            self._pidfd = pidfd.of_child(pid)
        except OSError:
            os.close(self._reading)
            raise
        finally:
            os.close(writing)
        self._timer = self._loop.call_after(_PATIENCE, self._give_up)
        self._loop.watch(self._reading, select.EPOLLIN, self._on_output)
        self._loop.watch(self._pidfd, select.EPOLLIN, self._on_end)

    def _on_output(self) -> None:
        try:
            data = os.read(self._reading, 4096)
        except BlockingIOError:
            return
        # The last of it is what tells: a traceback ends with the error.
        self._said = (self._said + data)[-4096:]
        if not data:
            self._loop.forget(self._reading)

    def _give_up(self) -> None:
        self._said = b"it has not proven itself within %d s" % _PATIENCE
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _on_end(self) -> None:
        ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        if ended is None:
            return
        self._on_output()
        self._timer.cancel()
        for fd in (self._reading, self._pidfd):
            self._loop.forget(fd)
            os.close(fd)
        if ended.si_code == os.CLD_EXITED and ended.si_status == 0:
            self._done(None)
        else:
            lines = self._said.decode("utf-8", "replace").strip().splitlines()
            self._done(lines[-1] if lines else f"it ended with {ended.si_status}")

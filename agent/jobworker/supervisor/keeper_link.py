"""The supervisor's end of its link to the keeper."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

from jobworker.supervisor.loop import Loop
from jobworker.wire import keeping, sockets

# How a process ended: si_code and si_status of waitid(2).
End = tuple[int, int]


@dataclass(frozen=True, slots=True)
class HandedBack:
    """What an earlier supervisor had of a job: the job's pipes, its pidfd if it had come that far, its end.

    Attributes:
        foreign: the keeper is not its parent, and will not learn of its end.
        stdin: what its standard input is written by, while that is open.
    """

    stdout: int
    stderr: int
    pidfd: int | None
    end: End | None
    foreign: bool = False
    stdin: tuple[int, ...] = ()


class KeeperLink:
    """Hands over what the keeper shall hold, and learns of the ends of adopted jobs' processes."""

    def __init__(self, link_fd: int) -> None:
        self._link = socket.socket(fileno=link_fd)
        os.set_inheritable(link_fd, False)

    def take_back(self) -> dict[str, HandedBack]:
        """Ask for what the keeper holds. To be called once, first of all; waits for the keeper.

        Raises:
            ConnectionResetError: there is no keeper.
        """
        held: dict[str, HandedBack] = {}
        ended: dict[str, End] = {}
        self._say(keeping.HAND_BACK, "", ())
        while True:
            data, fds, _ = sockets.receive(self._link, keeping.SIZE)
            if not data:
                raise ConnectionResetError("the keeper is gone")
            kind, job_id, end = keeping.unpack(data)
            if kind == keeping.HELD_ALL:
                return {name: replace(one, end=ended.get(name, one.end)) for name, one in held.items()}
            if kind == keeping.ENDED:
                # Said to the program that was here before this one took its place.
                ended[job_id] = end
                continue
            if kind == keeping.HELD_STDIN:
                held[job_id] = replace(held[job_id], stdin=fds.take())
                continue
            stdout, stderr, *process = fds.take()
            pidfd = process[0] if process else None
            known = None if end in (keeping.RUNNING, keeping.FOREIGN) else end
            held[job_id] = HandedBack(stdout, stderr, pidfd, known, end == keeping.FOREIGN)

    def listen(self, loop: Loop, on_end: Callable[[str, End], None], on_gone: Callable[[], None]) -> None:
        """Go on listening.

        Args:
            loop: where to listen.
            on_end: called with a job's id and how its process ended.
            on_gone: called when the keeper has died: a death of this process would cost output from then on.
        """

        def on_readable() -> None:
            try:
                data, fds, _ = sockets.receive(self._link, keeping.SIZE)
            except OSError:
                data, fds = b"", sockets.Descriptors()
            fds.close()
            if data:
                _, job_id, end = keeping.unpack(data)
                on_end(job_id, end)
            else:
                loop.forget(self._link.fileno())
                on_gone()

        loop.watch(self._link.fileno(), select.EPOLLIN, on_readable)

    @property
    def is_gone(self) -> bool:
        """The keeper has died, whether or not that has been heard yet."""
        poll = select.poll()
        poll.register(self._link, 0)
        return bool(poll.poll(0))

    def ready(self) -> None:
        self._say(keeping.READY, "", ())

    def upgrade(self) -> None:
        self._say(keeping.UPGRADE, "", ())

    def hold_pipes(self, job_id: str, stdout: int, stderr: int) -> None:
        self._say(keeping.HOLD_PIPES, job_id, (stdout, stderr))

    def hold_stdin(self, job_id: str, pipe: int, file: int) -> None:
        self._say(keeping.HOLD_STDIN, job_id, (pipe, file))

    def let_go_stdin(self, job_id: str) -> None:
        self._say(keeping.LET_GO_STDIN, job_id, ())

    def hold_process(self, job_id: str, pidfd: int) -> None:
        """Hand over a job's process.

        Raises:
            OSError: the keeper, or the supervisor that this link belongs to, has died.
        """
        sockets.send(self._link, keeping.pack(keeping.HOLD_PROCESS, job_id), (pidfd,))

    def release(self, job_id: str) -> None:
        self._say(keeping.RELEASE, job_id, ())

    def _say(self, kind: int, job_id: str, fds: tuple[int, ...]) -> None:
        # Blocks for as long as the keeper, which never blocks on us, takes to read.
        with contextlib.suppress(OSError):
            sockets.send(self._link, keeping.pack(kind, job_id), fds)

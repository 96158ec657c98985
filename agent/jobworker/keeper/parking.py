"""Copies of what the keeper holds, in the service manager's store, for the case that the keeper itself dies.

Each descriptor is stored under the job's id and what it is: `k7f39m2qx4tzb1cdo` for standard output. The names are
short because all of them come back in one variable, of which the kernel takes no more than 128 KiB. FDPOLL=0 keeps
the service manager from letting go of a pipe whose job has ended before somebody has read the rest.
"""

from __future__ import annotations

import contextlib
import os
import select

from jobworker.wire import keeping, service_manager
from jobworker.wire.handover import Held

_PATIENCE_MS = 1000

STDOUT, STDERR, PIDFD, STDIN_PIPE, STDIN_FILE = "o", "e", "p", "w", "f"


class Parking:
    """Says what is to be stored and what not any more, as fast as the service manager takes it."""

    def __init__(self) -> None:
        self._sock = service_manager.connect()
        # By name: the descriptor to store, or None for one to let go of.
        self._unsaid: dict[str, int | None] = {}

    @property
    def pending(self) -> bool:
        return bool(self._unsaid)

    def __bool__(self) -> bool:
        """True if there is a service manager."""
        return self._sock is not None

    def register(self, poll: select.poll) -> None:
        """Have the poll wake up when something that waits can be said."""
        if self._sock and self._unsaid:
            poll.register(self._sock, select.POLLOUT)

    def park(self, job_id: str, kind: str, fd: int) -> None:
        """Store a descriptor, which stays open until `release`."""
        self._say(name_of(job_id, kind), fd)

    def release(self, job_id: str, *kinds: str) -> None:
        """Store these of a job not any more. To be called before they are closed."""
        for name in (name_of(job_id, kind) for kind in kinds):
            # What was not said yet need not be taken back.
            if self._unsaid.pop(name, None) is None:
                self._say(name, None)

    def _say(self, name: str, fd: int | None) -> None:
        if self._sock:
            self._unsaid[name] = fd
            self.flush()

    def flush(self) -> None:
        if self._sock is None:
            return
        with contextlib.suppress(BlockingIOError):
            while self._unsaid:
                name, fd = next(iter(self._unsaid.items()))
                # One that the service manager does not want is not worth the agent's life.
                with contextlib.suppress(ConnectionError):
                    what = "FDSTOREREMOVE=1" if fd is None else "FDSTORE=1\nFDPOLL=0"
                    service_manager.send(self._sock, what, f"FDNAME={name}", fd=fd)
                del self._unsaid[name]

    def finish(self) -> None:
        """Say what waits, as long as the service manager listens."""
        poll = select.poll()
        self.register(poll)
        while self._unsaid and poll.poll(_PATIENCE_MS):
            self.flush()

    def take_back(self) -> dict[str, Held]:
        """What an earlier keeper, which has died, had stored.

        What is of no use without something that the store had no room for is let go of there as well: a job whose
        input has a writing end left would wait for it for ever.
        """
        found: dict[str, dict[str, int]] = {}
        for name, fd in service_manager.stored().items():
            found.setdefault(job_id_of(name), {})[name[-1:]] = fd
        held = {job_id: _held(fds) for job_id, fds in found.items() if STDOUT in fds and STDERR in fds}
        for job_id, rest in found.items():
            self.release(job_id, *rest)
            for fd in rest.values():
                os.close(fd)
        return held


def name_of(job_id: str, kind: str) -> str:
    """What a descriptor is stored under."""
    return job_id.replace("-", "") + kind


def job_id_of(name: str) -> str:
    return "-".join(name[at : at + 4] for at in range(0, len(name) - 1, 4))


def _held(fds: dict[str, int]) -> Held:
    """What can be gone on with, which is taken out of `fds`."""
    held = Held(fds.pop(STDOUT), fds.pop(STDERR))
    held.pidfd, held.end = fds.pop(PIDFD, -1), keeping.FOREIGN
    if STDIN_PIPE in fds and STDIN_FILE in fds:
        held.stdin = fds.pop(STDIN_PIPE), fds.pop(STDIN_FILE)
    return held

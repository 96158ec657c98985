"""Copies of what the keeper holds, in the service manager's store, for the case that the keeper itself dies.

Each descriptor is stored under the job's id and what it is: `k7f39m2qx4tzb1cdo` for standard output. The names are
short because all of them come back in one variable, of which the kernel takes no more than 128 KiB. FDPOLL=0 keeps
the service manager from letting go of a pipe whose job has ended before somebody has read the rest.
"""

from __future__ import annotations

import errno
import os
import select
import time

from jobworker.wire import keeping, service_manager
from jobworker.wire.handover import Held

# How long it may take nothing before what it has not taken is given up, at the end.
_PATIENCE = 1.0
# Between two tries where nothing tells when the next one can succeed.
_PAUSE = 0.5
# It has not read enough yet, or the host has no memory for it.
_PASSING = (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)

STDOUT, STDERR, PIDFD, STDIN_PIPE, STDIN_FILE = "o", "e", "p", "w", "f"


class Parking:
    """Says what is to be stored and what not any more, as fast as the service manager takes it.

    Attributes:
        again_at: when to `flush` again, on the monotonic clock; None where the poll tells.
    """

    def __init__(self) -> None:
        self._sock = service_manager.connect()
        self._managed = self._sock is not None
        # By name: the descriptor to store, or None for one to let go of.
        self._unsaid: dict[str, int | None] = {}
        self.again_at: float | None = None

    @property
    def pending(self) -> bool:
        return bool(self._unsaid)

    def __bool__(self) -> bool:
        """True if there is a service manager."""
        return self._managed

    def register(self, poll: select.poll) -> None:
        """Have the poll wake up when something that waits can be said."""
        if self._sock and self._unsaid and self.again_at is None:
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
        if self._managed:
            self._unsaid[name] = fd
            self.flush()

    def flush(self) -> None:
        """Say what waits, as far as that can be done now; nothing of this is worth the agent's life."""
        self.again_at = None
        try:
            while self._unsaid:
                name, fd = next(iter(self._unsaid.items()))
                self._send(name, fd)
                del self._unsaid[name]
        except BlockingIOError:
            # The poll tells when there is room.
            return
        except OSError as error:
            if self._sock and error.errno not in _PASSING:
                # It is connected to nobody any more, and would stay so.
                self._sock.close()
                self._sock = None
            self.again_at = time.monotonic() + _PAUSE

    def _send(self, name: str, fd: int | None) -> None:
        self._sock = self._sock or service_manager.connect()
        if self._sock is None:
            raise ConnectionRefusedError("the service manager does not listen")
        what = "FDSTOREREMOVE=1" if fd is None else "FDSTORE=1\nFDPOLL=0"
        service_manager.send(self._sock, what, f"FDNAME={name}", fd=fd)

    def finish(self) -> None:
        """Say what waits, as long as the service manager listens."""
        until, left = time.monotonic() + _PATIENCE, len(self._unsaid)
        while self._unsaid and time.monotonic() < until:
            poll = select.poll()
            self.register(poll)
            poll.poll(_PAUSE * 1000)
            self.flush()
            if len(self._unsaid) < left:
                until, left = time.monotonic() + _PATIENCE, len(self._unsaid)

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

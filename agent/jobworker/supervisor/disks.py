"""Which disk a directory is on that a client names, for the limits of IO.

Who looks at a path waits for its file system, and that of a dead server never answers. So a helper looks, and who
asked comes again when it has. What it has found is known in that very moment; nothing is kept of it. It looks with
the rights of the host's user whose job it is, or with nobody's: else root would tell which paths there are.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from jobworker import codec
from jobworker.errors import CapExceeded, HostFault
from jobworker.kernel import disk
from jobworker.kernel.disk import Disk, NoDisk
from jobworker.supervisor import accounts, helper
from jobworker.supervisor.loop import Loop, Timer

# Seconds. A disk that has to start turning takes some.
_WAIT = 10.0
# Of one principal. What can't be killed counts as well, until its file system answers.
_MOST = 32
# Of all together: a gateway that somebody has taken over makes principals up.
_MOST_IN_ALL = 256
_RETRY_SECONDS = 1
# Of what is wrong with a directory so many characters are told: errors quote its path, which may be as long as an
# argument. What is found fits into a pipe then, where it waits for the helper's end, and into an answer.
_MOST_TOLD = 300
# More than is found.
_SIZE = 65_536
# What it may see the user that a job has for itself may see as well.
_NOBODY = 65_534


@dataclass(frozen=True, slots=True)
class Found:
    """What a helper has found: the disk, or why there is none."""

    disk: Disk | None
    problem: str


class DiskAwaited(Exception):
    """It has to be found out first which disk this directory is on: see `Disks.look`."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.directory = directory


@dataclass(slots=True)
class _Look:
    """A helper under way."""

    directory: str
    timer: Timer
    is_late: bool = False
    waiting: list[Callable[[], None]] = field(default_factory=list)


# Who asks, the user whose job it is, and the directory.
_Key = tuple[str, str, str]


class Disks:
    """Knows of a directory what a helper has just found.

    Args:
        own: a directory like those that jobs get as their own.
    """

    def __init__(self, loop: Loop, own: str) -> None:
        self._loop = loop
        self._own = own
        self._looks: dict[_Key, _Look] = {}
        self._found: dict[str, Found | None] = {}

    def of(self, directory: str) -> Disk:
        """The disk that a directory is on; one that is not named is the job's own.

        Raises:
            NoDisk: it is on none, or none that can be found.
            OSError: there is no such path.
            HostFault: its file system does not answer.
            DiskAwaited: that is not known yet.
        """
        if not directory:
            return disk.of_path(self._own)
        if directory not in self._found:
            raise DiskAwaited(directory)
        found = self._found[directory]
        if found is None:
            problem = f"its file system does not answer within {_WAIT:g} s"
            raise HostFault(_looking(directory), "ETIMEDOUT", problem)
        if found.disk is None:
            raise NoDisk(found.problem)
        return found.disk

    def look(self, directory: str, user: str, principal: str, then: Callable[[], None]) -> None:
        """Have `then` called when `of` knows the directory, or that it can't be known.

        Args:
            directory: that a client names.
            user: the name of the host's user that its job runs as; empty where that user is its own.
            principal: who asks.
            then: comes again.

        Raises:
            CapExceeded: too many directories are being looked at, of the principal's or of all.
            HostFault: there can be no helper.
        """
        key = principal, user, directory
        look = self._looks.get(key) or self._begin(key)
        look.waiting.append(then)
        if look.is_late:
            self._tell(look, None)

    def keeping(self, then: Callable[[], None]) -> Callable[[], None]:
        """`then`, to be called when something else has been waited for, with what `of` knows now."""
        known = dict(self._found)

        def come_again() -> None:
            before, self._found = self._found, self._found | known
            then()
            self._found = before

        return come_again

    def _begin(self, key: _Key) -> _Look:
        principal, user, directory = key
        if sum(who == principal for who, _, _ in self._looks) >= _MOST:
            raise CapExceeded("the number of directories of yours that are looked at", _MOST, _RETRY_SECONDS)
        if len(self._looks) >= _MOST_IN_ALL:
            raise CapExceeded("the number of directories that are looked at", _MOST_IN_ALL, _RETRY_SECONDS)
        try:
            reading = helper.start_telling("jw-disk", (), lambda: _find(directory, user))
        except OSError as error:
            raise HostFault.of(_looking(directory), error) from error
        look = _Look(directory, self._loop.call_after(_WAIT, lambda: self._late(look)))
        self._looks[key] = look
        # For EPOLLHUP alone, which comes with its end.
        self._loop.watch(reading, 0, lambda: self._ended(key, reading))
        return look

    def _ended(self, key: _Key, reading: int) -> None:
        said = os.read(reading, _SIZE)
        self._loop.forget(reading)
        os.close(reading)
        look = self._looks.pop(key)
        look.timer.cancel()
        self._tell(look, codec.loads(Found, said) if said else None)

    def _late(self, look: _Look) -> None:
        look.is_late = True
        self._tell(look, None)

    def _tell(self, look: _Look, found: Found | None) -> None:
        waiting, look.waiting = look.waiting, []
        self._found[look.directory] = found
        for then in waiting:
            then()
        del self._found[look.directory]


def _looking(directory: str) -> str:
    return f"looking for the disk of {directory!r:.{_MOST_TOLD}}"


def _find(directory: str, user: str) -> None:
    # Its end, if anything can be the end of it.
    signal.setitimer(signal.ITIMER_REAL, _WAIT)
    try:
        found = Found(disk.of_open(_open(directory, user), directory), "")
    except (NoDisk, OSError, HostFault) as error:
        found = Found(None, str(error)[:_MOST_TOLD])
    os.write(0, codec.dumps(found))


def _open(directory: str, user: str) -> int:
    """Open the directory as no more than a path, with the user's rights."""
    if os.geteuid() != 0:
        return os.open(directory, os.O_PATH | os.O_CLOEXEC)
    account = accounts.find(user) if user else None
    os.setgroups(account.groups if account else ())
    os.setegid(account.gid if account else _NOBODY)
    # The effective ones alone: this process holds what root has in memory, and stays out of that user's reach.
    os.seteuid(account.uid if account else _NOBODY)
    try:
        return os.open(directory, os.O_PATH | os.O_CLOEXEC)
    finally:
        os.seteuid(0)

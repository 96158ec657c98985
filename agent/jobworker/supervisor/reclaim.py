"""Memory that is taken back from jobs which have more than they are to have.

Who lowers the limit waits while the kernel takes back pages, writes some to a disk, and ends processes for the
rest. So a helper lowers it, and who asked comes again when it has. The record has the new limit no sooner, and
until then the guard lets its memory be.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobworker.errors import CapExceeded
from jobworker.kernel.cgroup.files import CgroupDir
from jobworker.limits import Limits
from jobworker.supervisor import helper
from jobworker.supervisor.loop import Loop, Timer

if TYPE_CHECKING:
    from jobworker.supervisor.job import Job

# Seconds. Pages that have to be written to a disk first take some.
WAIT = 10.0
# So much longer what can't be ended then is waited for.
_MORE = 1.0
# Of one principal's jobs, and of all: a gateway that somebody has taken over makes principals up.
_MOST, _MOST_IN_ALL = 8, 64
_RETRY_SECONDS = 1
# More than a number and a path.
_SIZE = 8192


class MemoryAwaited(Exception):
    """The kernel has to take back memory of this job first: see `Reclaims.take`."""

    def __init__(self, job: Job, limits: Limits) -> None:
        super().__init__(job.record.job_id)
        self.job, self.limits = job, limits


@dataclass(slots=True)
class _Reclaim:
    """A helper under way."""

    principal: str
    directory: CgroupDir
    then: Callable[[], None]
    timer: Timer
    when_over: list[Callable[[], None]] = field(default_factory=list)


class Reclaims:
    """Knows of a job what a helper has just done."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._under_way: dict[str, _Reclaim] = {}
        self._done: dict[str, OSError | None] = {}

    def is_under_way(self, job_id: str) -> bool:
        return job_id in self._under_way

    def check_other(self, job: Job) -> None:
        """See that a change of a job's memory comes in the way of no other one.

        Raises:
            CapExceeded: it does.
        """
        if self.is_under_way(job.record.job_id) and job.record.job_id not in self._done:
            raise CapExceeded("the changes of this job's memory that are under way", 1, _RETRY_SECONDS)

    def check(self, job: Job, limits: Limits) -> None:
        """See that the kernel has just taken back what a job has beyond limits of memory.

        Raises:
            MemoryAwaited: it is to do that first.
            OSError: it refuses; the error names the file. ETIMEDOUT: it takes longer than `WAIT`.
        """
        if job.record.job_id not in self._done:
            raise MemoryAwaited(job, limits)
        if error := self._done[job.record.job_id]:
            raise error

    def take(self, job: Job, limits: Limits, then: Callable[[], None]) -> None:
        """Have the kernel take back what a job has beyond limits of memory.

        Args:
            job: that runs, and of which that is not under way.
            limits: of memory and swap. The kernel has them from then on, unless it refuses.
            then: comes again when `check` knows what came of it.

        Raises:
            CapExceeded: that is under way for too many, of the principal's or of all.
            OSError: there can be no helper.
        """
        job_id, principal = job.record.job_id, job.record.principal
        if sum(reclaim.principal == principal for reclaim in self._under_way.values()) >= _MOST:
            raise CapExceeded("the number of jobs of yours that memory is taken back from", _MOST, _RETRY_SECONDS)
        if len(self._under_way) >= _MOST_IN_ALL:
            raise CapExceeded("the number of jobs that memory is taken back from", _MOST_IN_ALL, _RETRY_SECONDS)
        directory, apply = job.group.memory_dir, job.group.apply_memory

        def lower() -> None:
            apply(CgroupDir(0, directory.path), limits)

        reading = helper.start_telling("jw-reclaim", (directory.fd,), lambda: _tell_of(lower))
        # For EPOLLHUP alone, which comes with its end.
        self._loop.watch(reading, 0, lambda: self._ended(job_id, reading))
        timer = self._loop.call_after(WAIT + _MORE, lambda: self._come_again(job_id, _late(directory)))
        self._under_way[job_id] = _Reclaim(principal, directory, then, timer)

    def when_over(self, callback: Callable[[], None], job_id: str = "") -> None:
        """Call back when no helper is at a job any more, or at any of those that one is at now: at once if none.

        The kernel does not remove a cgroup while somebody writes to a file of its, nor any other one meanwhile.
        """
        waited_for = {job_id} & self._under_way.keys() if job_id else set(self._under_way)
        if not waited_for:
            callback()
        for each in list(waited_for):

            def over(each: str = each) -> None:
                waited_for.discard(each)
                if not waited_for:
                    callback()

            self._under_way[each].when_over.append(over)

    def _ended(self, job_id: str, reading: int) -> None:
        said = os.read(reading, _SIZE)
        self._loop.forget(reading)
        os.close(reading)
        reclaim = self._under_way[job_id]
        # Else they have been told that it is late.
        if reclaim.timer.pending:
            reclaim.timer.cancel()
            self._come_again(job_id, _problem(said) if said else _late(reclaim.directory))
        del self._under_way[job_id]
        for callback in reclaim.when_over:
            callback()

    def _come_again(self, job_id: str, problem: OSError | None) -> None:
        self._done[job_id] = problem
        self._under_way[job_id].then()
        del self._done[job_id]


def _late(directory: CgroupDir) -> OSError:
    return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), directory.path)


def _tell_of(lower: Callable[[], None]) -> None:
    # The end of what waits, if anything can be the end of it.
    signal.setitimer(signal.ITIMER_REAL, WAIT)
    problem = b"0"
    try:
        lower()
    except OSError as error:
        problem = f"{error.errno} {error.filename}".encode("utf-8", "surrogateescape")
    os.write(1, problem)


def _problem(said: bytes) -> OSError | None:
    number, _, name = said.decode("utf-8", "surrogateescape").partition(" ")
    return OSError(int(number), os.strerror(int(number)), name) if int(number) else None

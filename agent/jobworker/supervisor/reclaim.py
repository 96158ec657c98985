"""Memory that is taken back from jobs which have more than they are to have.

Who lowers the limit waits while the kernel takes back pages, writes some to a disk, and ends processes for the
rest. So a helper lowers it, and who asked comes again when it has. The record has the new limit no sooner, and
until then the guard lets the job be.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from jobworker.errors import CapExceeded
from jobworker.kernel.cgroup.files import CgroupDir
from jobworker.limits import Limits
from jobworker.supervisor import helper
from jobworker.supervisor.job import Job
from jobworker.supervisor.loop import Loop, Timer

# Seconds. Pages that have to be written to a disk first take some.
WAIT = 10.0
# Jobs at a time.
_MOST, _RETRY_SECONDS = 32, 1
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

    then: Callable[[], None]
    over: Callable[[], None]
    timer: Timer


class Reclaims:
    """Knows of a job what a helper has just done."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._under_way: dict[str, _Reclaim] = {}
        self._done: dict[str, OSError | None] = {}

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

    def is_under_way(self, job_id: str) -> bool:
        return job_id in self._under_way

    def take(self, job: Job, limits: Limits, then: Callable[[], None], over: Callable[[], None]) -> None:
        """Have the kernel take back what a job has beyond limits of memory.

        Args:
            job: that runs.
            limits: of memory and swap. The kernel has them from then on, unless it refuses.
            then: comes again when `check` knows what came of it.
            over: called behind that, when the helper has ended.

        Raises:
            CapExceeded: that is under way already for this job, or for too many.
            OSError: there can be no helper.
        """
        job_id, directory, apply = job.record.job_id, job.group.memory_dir, job.group.apply_memory
        if job_id in self._under_way:
            raise CapExceeded("the changes by which memory is being taken back from this job", 1, _RETRY_SECONDS)
        if len(self._under_way) >= _MOST:
            raise CapExceeded("the jobs from which memory is being taken back", _MOST, _RETRY_SECONDS)

        def lower() -> None:
            apply(CgroupDir(0, directory.path), limits)

        reading = helper.start_telling("jw-reclaim", (directory.fd,), lambda: _tell_of(lower))
        timer = self._loop.call_after(WAIT, lambda: self._come_again(job_id, _late(directory)))
        self._under_way[job_id] = _Reclaim(then, over, timer)
        # For EPOLLHUP alone, which comes with its end.
        self._loop.watch(reading, 0, lambda: self._ended(job_id, directory, reading))

    def _ended(self, job_id: str, directory: CgroupDir, reading: int) -> None:
        said = os.read(reading, _SIZE)
        self._loop.forget(reading)
        os.close(reading)
        # Else they have been told that it is late.
        if self._under_way[job_id].timer.pending:
            self._under_way[job_id].timer.cancel()
            self._come_again(job_id, _problem(said) if said else _late(directory))
        self._under_way.pop(job_id).over()

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

"""Sees to it that jobs keep their limits, whoever writes to their cgroups' files.

The kernel tells of each write. What differs then from what the job was given is set again, told with the job, and
counted; so is what has been changed while no supervisor was there.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable
from dataclasses import replace

from jobworker.kernel.inotify import Inotify
from jobworker.limits import BY_NAME, KINDS, Enforcement, Limits, LimitStatus
from jobworker.supervisor.job import Job
from jobworker.supervisor.limits import ANOTHER_VALUE
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.reclaim import Reclaims

# Jobs that are looked at in one callback.
_AT_ONCE = 16
# The kernel's own to write, which tells of that too: of a job at its memory limit a hundred times a second.
_EVENTS = (".events", ".events.local")


class LimitGuard:
    """Guards the jobs that it is told of, as far as the kernel has room for that."""

    def __init__(self, loop: Loop, log: Log, reclaims: Reclaims) -> None:
        self._reclaims = reclaims
        self._loop = loop
        self._log = log
        self._inotify: Inotify | None = None
        self._jobs: dict[int, Job] = {}
        self._watches: dict[str, set[int]] = {}
        self._suspects: dict[str, Job] = {}
        self._said_unguarded = False
        try:
            self._inotify = inotify = Inotify(_EVENTS)
        except OSError as error:
            self._say_unguarded(error)
        else:
            loop.watch(inotify.fd, select.EPOLLIN, self._heed)

    def _say_unguarded(self, error: OSError, **told: str) -> None:
        if not self._said_unguarded:
            self._log.warning("limits are not guarded", **told, error=str(error))
        self._said_unguarded = True

    def begin(self, job: Job, *, suspect: bool) -> None:
        """Guard a job; `suspect` if its limits may have been changed already."""
        if self._inotify:
            self._watch(self._inotify, job)
        if suspect:
            self.suspect(job)

    def _watch(self, inotify: Inotify, job: Job) -> None:
        # Controllers that are mounted together have one directory, and that one watch.
        watches = self._watches[job.record.job_id] = set()
        for fd in job.group.limit_fds():
            try:
                watches.add(inotify.watch(fd))
            except OSError as error:
                self._say_unguarded(error, job=job.record.job_id)
        self._jobs |= dict.fromkeys(watches, job)

    def end(self, job_id: str) -> None:
        """The job has ended; nothing happens if it was not guarded."""
        for watch in self._watches.pop(job_id, ()):
            del self._jobs[watch]
            if self._inotify:
                self._inotify.forget(watch)
        self._suspects.pop(job_id, None)

    def _heed(self, ours: Job | None = None) -> None:
        """Suspect the jobs whose files have been written to, but not the one that we have written to ourselves."""
        if self._inotify:
            with contextlib.suppress(BlockingIOError):
                while True:
                    watches, lost = self._inotify.read()
                    for watch in self._jobs if lost else watches & self._jobs.keys():
                        if self._jobs[watch] is not ours:
                            self.suspect(self._jobs[watch])

    def suspect(self, job: Job) -> None:
        """Look at a job's limits, which may have been changed."""
        if not self._suspects:
            self._loop.call_after(0, self._look)
        self._suspects[job.record.job_id] = job

    def _look(self) -> None:
        for job_id in list(self._suspects)[:_AT_ONCE]:
            self._hold(self._suspects.pop(job_id))
        if self._suspects:
            self._loop.call_after(0, self._look)

    def _hold(self, job: Job) -> None:
        given = job.limits
        if self._reclaims.is_under_way(job.record.job_id):
            # Those are being changed by us; they are looked at when that is over.
            given = replace(given, memory_bytes=None, swap_bytes=None)
        try:
            changed = different(job.group.limits(given.io_device), given)
            if not changed:
                if job.record.limits != job.granted:
                    # Whoever has changed them has set them again.
                    job.limits_changed(job.granted, restored=False)
                return
            problems = change_each(job.group.apply, given)
            # Else what cannot be set again would be tried again for ever, for others of its limits can be.
            self._heed(job)
            actual = job.group.limits(given.io_device)
        except OSError:
            # Its cgroup is being removed.
            return
        off = different(actual, given)
        self._log.warning("limits changed by others", job=job.record.job_id, limits=changed, not_restored=problems)
        statuses = (
            _off(status, actual, problems.get(status.name, ANOTHER_VALUE)) if status.name in off else status
            for status in job.granted
        )
        job.limits_changed(tuple(statuses), restored=any(name not in off for name in changed))


def change_each(change: Callable[[Limits], None], limits: Limits) -> dict[str, str]:
    """Change limits one by one, whatever becomes of the others; why some could not be, by name."""
    problems: dict[str, str] = {}
    for part in limits.parts():
        try:
            change(part)
        except OSError as error:
            problems |= {name: f"{error.strerror} ({error.filename})" for name, _ in part.given()}
    return problems


def different(actual: Limits, given: Limits) -> list[str]:
    """The names of the limits that are not as they were given."""
    pairs = ((kind.name, getattr(given, kind.field), getattr(actual, kind.field)) for kind in KINDS)
    return [name for name, wanted, found in pairs if wanted is not None and found != wanted]


def given(asked: Limits, actual: Limits) -> Limits:
    """What a group was given: what was asked for, as the kernel has rounded it; no swap comes with memory."""
    fields = {kind.field for kind in KINDS if getattr(asked, kind.field) is not None}
    if asked.memory_bytes is not None:
        fields.add("swap_bytes")
    return Limits(io_device=asked.io_device, **{field: getattr(actual, field) for field in fields})


def _off(status: LimitStatus, actual: Limits, problem: str) -> LimitStatus:
    """A limit that others have changed, as it is until it can be set again."""
    kind = BY_NAME[status.name]
    found = getattr(actual, kind.field)
    value = "" if found is None else kind.show(found)
    detail = f"changed by others, and not to be set again: {problem}"
    return replace(status, value=value, enforcement=Enforcement.BEST_EFFORT, detail=detail)

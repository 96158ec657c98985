"""What has changed, in the order of the supervisor's revisions, and who waits for it.

There is no queue for any watcher: each has a position in one order that all share, and of every job only the
newest change is in it. So a watcher that stalls holds nothing, and finds the newest state of each job later.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right, insort
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from jobworker.errors import WatchExpired
from jobworker.gateway.known import Known, Wanted

# A watcher that was away, or has not read, while more jobs were removed has to begin anew.
_MAX_GONE = 4_096
_VOID = 1_024
_ALL = "all"

# A revision, and the job that changed then. Several jobs have one if they are found to be gone together.
Place = tuple[int, str]
# Behind every id.
_LAST = "~"


@dataclass(frozen=True, slots=True)
class Watched:
    """Which jobs a watcher wants to hear of: those of the ids, or any for none, that fit the rest."""

    ids: frozenset[str] = frozenset()
    wanted: Wanted = field(default_factory=Wanted)

    def fits(self, job: Known) -> bool:
        return (not self.ids or job.job_id in self.ids) and self.wanted.fits(job)

    def any_state(self) -> Watched:
        return replace(self, wanted=replace(self.wanted, states=frozenset()))

    def woken_by(self) -> tuple[Hashable, ...]:
        """What a job that fits has at least one of."""
        if self.ids:
            return tuple(self.ids)
        if self.wanted.labels:
            return (self.wanted.labels[0],)
        return (("principal", self.wanted.principal),) if self.wanted.principal else (_ALL,)


@dataclass(frozen=True, slots=True)
class Change:
    """One job's newest change.

    Attributes:
        gone: the job as it was when it was removed; None if it is there.
        whole: no other job has the same revision behind it.
    """

    place: Place
    gone: Known | None
    whole: bool


class Changes:
    """All changes that may still have to be told.

    Attributes:
        epoch: of the supervisor's revisions.
        newest: revision of the newest change.
        floor: the oldest revision that a token may have: not all removals before it are known.
    """

    def __init__(self) -> None:
        self.epoch = ""
        self.newest = 0
        self.floor = 0
        self._before = 0
        self._order: list[Place] = []
        self._revisions: dict[str, int] = {}
        # In the order of their removal, and without their messages.
        self._gone: dict[str, Known] = {}
        self._waiting: dict[Hashable, set[asyncio.Event]] = {}

    # What the mirror tells.

    def begin(self, epoch: str) -> None:
        """A connection begins; with another epoch, everything does."""
        self._before = self.newest
        if epoch != self.epoch:
            self._order, self._revisions, self._gone = [], {}, {}
            self.epoch, self.newest, self.floor = epoch, 0, 0

    def changed(self, job: Known, revision: int) -> None:
        if self._revisions.get(job.job_id, 0) < revision:
            self._gone.pop(job.job_id, None)
            self._add(job, revision)

    def removed(self, job: Known, revision: int) -> None:
        self._gone[job.job_id] = replace(job, message=b"")
        self._add(job, revision)
        if len(self._gone) > _MAX_GONE:
            oldest = next(iter(self._gone))
            del self._gone[oldest]
            # A sync may have set it beyond what went before that.
            self.floor = max(self.floor, self._revisions.pop(oldest))

    def synced(self, revision: int, removed: int, began: int) -> None:
        """All jobs have been told of.

        Args:
            revision: the newest there is.
            removed: that of the newest removal there may have been.
            began: the first of the supervisor that is there now.
        """
        # Jobs may have been made and removed while nobody here could hear of them. One that has died removed none.
        unheard = removed > max(began, self._before)
        if unheard or not self.floor:
            self.floor = removed
        self.newest = max(self.newest, revision)
        self.wake_all()

    def _add(self, job: Known, revision: int) -> None:
        self._revisions[job.job_id] = revision
        self.newest = max(self.newest, revision)
        insort(self._order, (revision, job.job_id))
        if len(self._order) > 2 * len(self._revisions) + _VOID:
            self._order = [place for place in self._order if self._is_newest(place)]
        for key in (job.job_id, _ALL, ("principal", job.principal), *job.labels):
            for event in self._waiting.get(key, ()):
                event.set()

    def wake_all(self) -> None:
        for events in self._waiting.values():
            for event in events:
                event.set()

    # What watchers ask.

    @contextmanager
    def waiting(self, watched: Watched) -> Iterator[asyncio.Event]:
        """An event that is set when something may have happened to jobs that fit."""
        event = asyncio.Event()
        for key in watched.woken_by():
            self._waiting.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            for key in watched.woken_by():
                self._waiting[key].discard(event)
                if not self._waiting[key]:
                    del self._waiting[key]

    def check(self, epoch: str, revision: int) -> None:
        """Check that everything behind a revision is known.

        Raises:
            WatchExpired: it is not.
        """
        if epoch != self.epoch:
            raise WatchExpired("the token is of another agent, or of this one before its host was booted")
        if revision > self.newest:
            raise WatchExpired("the token is of a later time than this agent has come to")
        if revision < self.floor:
            raise WatchExpired("jobs were removed since then that this agent does not remember")

    def behind(self, place: Place) -> Iterator[Change]:
        """The changes behind a place. Not to be gone on with after anything else has had its turn."""
        index = bisect_right(self._order, place)
        while index < len(self._order):
            found = self._order[index]
            index += 1
            if self._is_newest(found):
                whole = index == len(self._order) or self._order[index][0] != found[0]
                yield Change(found, self._gone.get(found[1]), whole)

    def _is_newest(self, place: Place) -> bool:
        return self._revisions.get(place[1]) == place[0]


def place(revision: int) -> Place:
    """Behind all that has this revision."""
    return revision, _LAST

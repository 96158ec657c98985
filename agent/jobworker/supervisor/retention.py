"""How long ended jobs are kept: by number, age, what their output takes of the disk, and their records of memory.

Their age goes by the monotonic clock: a wall clock that is set makes no job older.

A job that has to go is out of the registry at once, by a rename of its directory. A helper then removes what is
there, which may be a million files; until it has, the job's user id stays in use, since the files are that user's.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from jobworker.jobs import JobRecord
from jobworker.settings.schema import JobSettings
from jobworker.supervisor import helper, removal, retry, segments
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import SLICE, Loop, Timer
from jobworker.supervisor.space import Space
from jobworker.supervisor.store import Store

# Who listens learns first how a job has ended; and those that go within this time are removed by one helper.
_GATHER = 1.0
# A disk that refuses may not do so any more.
_TRY_AGAIN = 60.0
# What a record takes of memory beside its texts.
_RECORD_BYTES = 2_048


@dataclass(slots=True)
class _Kept:
    """An ended job.

    Attributes:
        ended_at: on the monotonic clock, in seconds.
        record: its bytes in memory.
        output: its bytes on the disk.
        is_refused: the disk would not let it go, and the log tells so.
    """

    ended_at: float
    uid: int
    record: int
    output: int = 0
    is_refused: bool = False


class Retention:
    """Chooses which ended jobs go.

    Args:
        space: what they share with the running ones.
        forget: called with the id of a job that is gone.
        left: called with a removed job's user id if an earlier life has left files of it.
        removed: called with a job's user id once its last file is gone.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        store: Store,
        space: Space,
        settings: JobSettings,
        forget: Callable[[str], None],
        left: Callable[[int], None],
        removed: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._store = store
        self._log = log
        self._space = space
        self._keep = settings.keep_ended
        self._keep_seconds = settings.keep_ms / 1000
        self._keep_records = settings.keep_records_bytes
        self._forget = forget
        self._kept: dict[str, _Kept] = {}
        self._records = 0
        # When they ended, and their ids; the oldest first.
        self._ended: list[tuple[float, str]] = []
        # Those that should have gone and could not: others go all the same.
        self._refused: list[tuple[float, str]] = []
        # The bytes of the output that is being removed.
        self._leaving: dict[str, int] = {}
        self._removed = removed
        self._remover = Remover(loop, log, store, lambda name: left(store.user_of(name)), self._is_removed)
        space.on_crowded(self.look)
        self._timer: Timer | None = None
        self._begun = False

    def begin(self) -> None:
        """All jobs of earlier lives are known."""
        self._begun = True
        self._remover.begin()
        self._enforce()

    def add(self, record: JobRecord, ended_at: float) -> None:
        """The job has ended, now or long ago: at this time of the monotonic clock, below 0 if before the boot."""
        heapq.heappush(self._ended, (ended_at, record.job_id))
        kept = self._kept[record.job_id] = _Kept(ended_at, record.uid, _size(record))
        self._records += kept.record
        self.resized(record.job_id)
        self.look()

    def resized(self, job_id: str) -> None:
        """The output of an ended job takes more or less of the disk than it did."""
        kept, stored = self._kept[job_id], self._stored(job_id)
        self._space.ended += stored - kept.output
        kept.output = stored

    def _stored(self, job_id: str) -> int:
        # Somebody has removed it, or the disk fails: nothing is known to be there.
        with contextlib.suppress(OSError):
            directory = self._store.open_logs(job_id)
            try:
                return segments.stored(directory)
            finally:
                os.close(directory)
        return 0

    def look(self) -> None:
        """See soon whether a job has to go."""
        if self._begun:
            self._wait(_GATHER)

    def delete(self, job_id: str) -> None:
        """Remove an ended job now.

        Raises:
            OSError: it can't be; it is where it was.
        """
        entry = self._kept[job_id].ended_at, job_id
        self._take_out(job_id)
        # A walk over what is kept, which takes a millisecond for 10,000 jobs.
        (self._refused if entry in self._refused else self._ended).remove(entry)
        heapq.heapify(self._ended)

    def _take_out(self, job_id: str) -> None:
        """Have a job go.

        Raises:
            OSError: it can't; it is where it was.
        """
        kept = self._kept[job_id]
        try:
            name = self._remover.remove(job_id, kept.uid)
        except FileNotFoundError:
            if self._is_there(job_id):
                raise
            self._log.warning("somebody has removed an ended job's directory", job=job_id)
            self._removed(kept.uid)
        else:
            self._leaving[name] = kept.output
            self._space.leaving += kept.output
        del self._kept[job_id]
        self._records -= kept.record
        self._space.ended -= kept.output
        self._forget(job_id)

    def _is_there(self, job_id: str) -> bool:
        # It may be the place for the removed ones that is missing: then files of the job's user are here still.
        try:
            os.stat(job_id, dir_fd=self._store.jobs_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _is_removed(self, name: str) -> None:
        # Nothing is known of what an earlier life has left.
        self._space.leaving -= self._leaving.pop(name, 0)
        self._removed(self._store.user_of(name))

    def _enforce(self) -> None:
        end = time.monotonic() + SLICE
        while self._ended and self._left() <= 0:
            if time.monotonic() > end:
                # Thousands may come to their end together.
                self._wait(0)
                return
            self._remove(heapq.heappop(self._ended))
        if self._ended and self._keep_seconds:
            self._wait(self._left())

    def _left(self) -> float:
        """Seconds until the oldest has to go."""
        too_large = self._keep_records and self._records > self._keep_records
        if len(self._ended) > self._keep or too_large or self._space.is_crowded:
            return 0
        return self._ended[0][0] + self._keep_seconds - time.monotonic() if self._keep_seconds else float("inf")

    def _wait(self, seconds: float) -> None:
        if self._timer and self._timer.pending:
            if self._timer.deadline <= time.monotonic() + seconds:
                return
            self._timer.cancel()
        self._timer = self._loop.call_after(seconds, self._enforce)

    def _remove(self, entry: tuple[float, str]) -> None:
        job_id = entry[1]
        try:
            self._take_out(job_id)
        except OSError as error:
            if not self._kept[job_id].is_refused:
                self._log.error("ended job not removed", job=job_id, error=str(error))
            self._kept[job_id].is_refused = True
            if not self._refused:
                self._loop.call_after(_TRY_AGAIN, self._again)
            self._refused.append(entry)

    def _again(self) -> None:
        for entry in self._refused:
            heapq.heappush(self._ended, entry)
        self._refused.clear()
        self._enforce()


def _size(record: JobRecord) -> int:
    """About what it takes of memory. In the gateway, which has it encoded, it is not much more and mostly less."""
    labels = itertools.chain.from_iterable(record.labels)
    texts = (record.principal, record.command, record.workdir, record.detail, *record.env_names, *labels)
    # Not by their length: many short ones take more of it than a long one.
    return _RECORD_BYTES + sum(map(sys.getsizeof, (*texts, *record.args)))


class Remover:
    """Removes the directories of jobs that nobody asks for any more, those that an earlier life left included.

    Args:
        left: called with the name of a directory that an earlier life has left.
        removed: called with the name of one that is gone.
    """

    def __init__(
        self, loop: Loop, log: Log, store: Store, left: Callable[[str], None], removed: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._log = log
        self._store = store
        self._left = left
        self._removed = removed
        self._waiting: set[str] = set()
        # What a helper is at.
        self._batch: tuple[str, ...] = ()
        self._busy = False

    def begin(self) -> None:
        self._look(self._find)

    def _look(self, found: Callable[[frozenset[str]], None]) -> None:
        """See what there is to be removed."""
        event = "the directories of removed jobs can't be listed"
        retry.until_done(self._loop, self._log, event, self._store.set_aside, found)

    def _find(self, names: frozenset[str]) -> None:
        ours = frozenset(filter(self._store.is_set_aside, names))
        if others := sorted(names - ours):
            self._log.warning("no removed jobs are called so: left alone", directory="removed", names=others)
        found = ours.difference(self._batch)
        for name in found:
            self._left(name)
        self._waiting |= found
        self._gather()

    def remove(self, job_id: str, uid: int) -> str:
        """Set the job's directory aside, and remove it soon; what it is called until then.

        Raises:
            OSError: it can't be; it is where it was.
        """
        name = self._store.set_job_aside(job_id, uid)
        self._waiting.add(name)
        self._gather()
        return name

    def _gather(self) -> None:
        if self._waiting and not self._busy:
            # In the next round: others of this one come with it.
            self._busy = True
            self._loop.call_after(0, self._begin)

    def _begin(self) -> None:
        event = "files of removed jobs stay: no remover could be started"
        retry.until_done(self._loop, self._log, event, self._start, self._started)

    def _start(self) -> int:
        """Start a helper for all that wait; what closes when it has ended, however it did."""
        batch = tuple(self._waiting)
        fds = (self._store.removed_fd,)
        reading = helper.start_telling("jw-remover", fds, lambda: removal.remove(0, batch))
        self._batch, self._waiting = batch, set()
        return reading

    def _started(self, reading: int) -> None:
        self._loop.watch(reading, select.EPOLLIN, lambda: self._ended(reading))

    def _ended(self, reading: int) -> None:
        self._loop.forget(reading)
        os.close(reading)
        self._look(self._done)

    def _done(self, left: frozenset[str]) -> None:
        batch, self._batch = self._batch, ()
        for name in batch:
            if name in left:
                # It is tried again when the agent starts; until then its user is not another job's.
                self._log.error("files of a removed job are left", directory=f"removed/{name}")
            else:
                self._removed(name)
        self._busy = False
        self._gather()

"""How long ended jobs are kept: by number, by age, and by the bytes of their output.

A job that has to go is out of the registry at once, by a rename of its directory. A helper then removes what is
there, which may be a million files; until it has, the job's user id stays in use, since the files are that user's.
"""

from __future__ import annotations

import heapq
import os
import select
import time
from collections.abc import Callable

from jobworker.jobs import JobRecord
from jobworker.settings.schema import JobSettings
from jobworker.supervisor import helper, removal
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop, Timer
from jobworker.supervisor.store import Store

# Who listens learns first how a job has ended; and those that go within this time are removed by one helper.
_GATHER = 1.0
# A disk that refuses may not do so any more.
_TRY_AGAIN = 60.0


class Retention:
    """Chooses which ended jobs go.

    Args:
        forget: called with the id of a job that is gone.
        removed: called with the user id of a job of which no file is left.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        store: Store,
        settings: JobSettings,
        forget: Callable[[str], None],
        removed: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._store = store
        self._log = log
        self._keep = settings.keep_ended
        self._keep_ns = settings.keep_ms * 1_000_000
        self._keep_logs = settings.keep_logs
        self._keep_log = settings.keep_log
        self._forget = forget
        # When they ended, their ids, users and bytes of output; the oldest first.
        self._ended: list[tuple[int, str, int, int]] = []
        self._log_bytes = 0
        self._remover = Remover(loop, log, store, removed)
        self._timer: Timer | None = None
        self._begun = False

    def begin(self) -> None:
        """All jobs of earlier lives are known."""
        self._begun = True
        self._remover.begin()
        self._enforce()

    def add(self, record: JobRecord) -> None:
        """The job has ended, now or long ago."""
        kept = record.log_bytes - record.lost_bytes
        size = min(kept, self._keep_log) if self._keep_log else kept
        self._log_bytes += size
        heapq.heappush(self._ended, (record.ended_ns, record.job_id, record.uid, size))
        if self._begun:
            self._wait(_GATHER)

    def delete(self, job_id: str) -> None:
        """Remove an ended job now.

        Raises:
            OSError: it can't be; it is where it was.
        """
        # A walk over what is kept, which takes a millisecond for 10,000 jobs.
        found = next(entry for entry in self._ended if entry[1] == job_id)
        _, _, uid, size = found
        self._remover.remove(job_id, uid)
        self._ended.remove(found)
        heapq.heapify(self._ended)
        self._log_bytes -= size
        self._forget(job_id)

    def _enforce(self) -> None:
        while self._ended and self._left() <= 0:
            _, job_id, uid, size = self._ended[0]
            if not self._remove(job_id, uid):
                self._wait(_TRY_AGAIN)
                return
            heapq.heappop(self._ended)
            self._log_bytes -= size
        if self._ended and self._keep_ns:
            self._wait(self._left())

    def _left(self) -> float:
        """Seconds until the oldest has to go. By the wall clock, since it may have ended before a reboot."""
        if len(self._ended) > self._keep or 0 < self._keep_logs < self._log_bytes:
            return 0
        return (self._ended[0][0] + self._keep_ns - time.time_ns()) / 1e9 if self._keep_ns else float("inf")

    def _wait(self, seconds: float) -> None:
        if self._timer and self._timer.pending:
            if self._timer.deadline <= time.monotonic() + seconds:
                return
            self._timer.cancel()
        self._timer = self._loop.call_after(seconds, self._enforce)

    def _remove(self, job_id: str, uid: int) -> bool:
        try:
            self._remover.remove(job_id, uid)
        except OSError as error:
            self._log.error("ended job not removed", job=job_id, error=str(error))
            return False
        self._forget(job_id)
        return True


class Remover:
    """Removes the directories of jobs that nobody asks for any more, those that an earlier life left included."""

    def __init__(self, loop: Loop, log: Log, store: Store, removed: Callable[[int], None]) -> None:
        self._loop = loop
        self._log = log
        self._store = store
        self._removed = removed
        self._waiting: set[str] = set()
        self._busy = False

    def begin(self) -> None:
        self._waiting.update(self._store.set_aside())
        self._gather()

    def remove(self, job_id: str, uid: int) -> None:
        """Set the job's directory aside, and remove it soon.

        Raises:
            OSError: it can't be; it is where it was.
        """
        self._waiting.add(self._store.set_job_aside(job_id, uid))
        self._gather()

    def _gather(self) -> None:
        if self._waiting and not self._busy:
            # In the next round: others of this one come with it.
            self._busy = True
            self._loop.call_after(0, self._start)

    def _start(self) -> None:
        batch, self._waiting = tuple(self._waiting), set()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        helper.start("jw-remover", (self._store.removed_fd, writing), lambda: removal.remove(0, batch))
        os.close(writing)
        # It closes when the helper has ended, however it did.
        self._loop.watch(reading, select.EPOLLIN, lambda: self._done(reading, batch))

    def _done(self, reading: int, batch: tuple[str, ...]) -> None:
        self._loop.forget(reading)
        os.close(reading)
        left = self._store.set_aside()
        for name in batch:
            if name in left:
                # It is tried again when the agent starts; until then its user is not another job's.
                self._log.error("files of a removed job are left", directory=f"removed/{name}")
            else:
                self._removed(self._store.user_of(name))
        self._busy = False
        self._gather()

"""Counts what becomes of jobs, over the deaths and restarts of whoever counts.

Kept in the state directory as of the end of each round of the loop, before any answer of that round goes out: who
was told of a start finds it counted. What running jobs have written is not in there, since their logs say that.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from jobworker import codec
from jobworker.errors import ProtocolError
from jobworker.histogram import Histogram
from jobworker.jobs import EndReason, JobRecord
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop, Timer
from jobworker.supervisor.store import Store
from jobworker.wire.measures import RUN_BOUNDS, START_BOUNDS, Ended, Life, Totals

_FILE = "totals"
# A disk that is full may have room again.
_AGAIN = 1.0


class Tally:
    """The one who counts; the state directory must be this process's own by now.

    Args:
        upgraded: this program goes on in the process of an earlier version.
    """

    def __init__(self, loop: Loop, log: Log, store: Store, *, upgraded: bool) -> None:
        self._loop = loop
        self._log = log
        self._store = store
        self._began = time.monotonic()
        self._serving = self._whole = 0.0
        before = self._load()
        self._kept = replace(
            before, lives=before.lives + (not upgraded), upgrades=before.upgrades + bool(upgraded)
        )
        self._ended = Counter({each.reason: each.jobs for each in before.ended})
        self._starting = Histogram(START_BOUNDS, before.starting)
        self._running = Histogram(RUN_BOUNDS, before.running)
        self._changed = True
        self._failing = False
        self._retry: Timer | None = None
        loop.after_each_round(self.save)

    def _load(self) -> Totals:
        try:
            kept = self._store.load_kept(_FILE)
            return codec.loads(Totals, kept) if kept else Totals()
        except (OSError, ProtocolError) as error:
            # Whoever computes rates from them takes it as a restart of the counters.
            self._log.warning("totals can't be read, and begin anew", error=str(error))
            return Totals()

    def save(self) -> None:
        """Keep what there is, if it is news; what can't be kept is tried again later."""
        if not self._changed or (self._retry and self._retry.pending):
            return
        try:
            self._store.save_kept(_FILE, codec.dumps(self._totals()))
        except OSError as error:
            if not self._failing:
                self._log.error("totals not saved", error=str(error))
            self._failing = True
            self._retry = self._loop.call_after(_AGAIN, self.save)
        else:
            self._changed = self._failing = False

    def _totals(self) -> Totals:
        return replace(
            self._kept,
            ended=tuple(Ended(reason, self._ended[reason]) for reason in EndReason if self._ended[reason]),
            starting=self._starting.snapshot(),
            running=self._running.snapshot(),
        )

    def _add(self, **counts: int) -> None:
        self._kept = replace(
            self._kept, **{name: getattr(self._kept, name) + more for name, more in counts.items()}
        )
        self._changed = True

    # What there is to count.

    def started(self, seconds: float | None) -> None:
        """A job has been started, so long after it was asked for if that is known."""
        if seconds is not None:
            self._starting.add(seconds)
        self._add(started=1)

    def start_failed(self) -> None:
        self._add(start_failures=1)

    def ended(self, record: JobRecord, seconds: float | None) -> None:
        """A job has ended, so long after its start if that is known."""
        if record.end_reason:
            self._ended[record.end_reason] += 1
        if seconds is not None:
            self._running.add(seconds)
        self._add(log_bytes=record.log_bytes, lost_bytes=record.lost_bytes)

    def output_lost(self) -> None:
        """A job's output has begun to be lost."""
        self._add(log_gaps=1)

    def limits_restored(self) -> None:
        self._add(limits_restored=1)

    def cgroup_left(self) -> None:
        self._add(cgroups_left=1)

    def serving(self) -> None:
        self._serving = time.monotonic() - self._began

    def whole(self) -> None:
        """Every job of earlier lives is known."""
        self._whole = time.monotonic() - self._began

    # What is told of it.

    def totals(self, written: Iterable[tuple[int, int]]) -> Totals:
        """All of it.

        Args:
            written: of each running job, how many bytes it has written and how many of these are lost.
        """
        totals = self._totals()
        log_bytes, lost_bytes = (sum(counts) for counts in zip((0, 0), *written, strict=True))
        return replace(totals, log_bytes=totals.log_bytes + log_bytes, lost_bytes=totals.lost_bytes + lost_bytes)

    def life(self) -> Life:
        return Life(self._serving, self._whole, self._loop.rounds.snapshot())

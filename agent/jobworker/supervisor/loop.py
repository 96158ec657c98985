"""The supervisor's event loop: epoll, timers on the monotonic clock, and signals.

One thread, level-triggered. Each callback does a bounded piece of work and returns; what is left makes its
descriptor ready again in the next round, so that no job can hold up another.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import signal
import time
from collections.abc import Callable

from jobworker.histogram import Histogram
from jobworker.wire.measures import ROUND_BOUNDS

Callback = Callable[[], None]

# Seconds that a callback may take at the most: jobs and clients get their turn in between.
SLICE = 0.005
_PURGE_MARGIN = 1024
# epoll_wait(2) counts milliseconds in 31 bits; a timer may be further away.
_LONGEST_WAIT = 86_400.0


class Timer:
    """A call to come; `cancel` may be called at any time, also after it was made."""

    __slots__ = ("_callback", "deadline")

    def __init__(self, deadline: float, callback: Callback) -> None:
        self.deadline = deadline
        self._callback: Callback | None = callback

    @property
    def pending(self) -> bool:
        return self._callback is not None

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        callback, self._callback = self._callback, None
        if callback:
            callback()


class Loop:
    """Runs callbacks until `stop`.

    Attributes:
        ready: how many descriptors were ready in the present round.
        rounds: how long each took, its waiting for events apart.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._purge_at = _PURGE_MARGIN
        self._after_round: list[Callback] = []
        self._signals: dict[int, Callback] = {}
        self._running = False
        self.ready = 0
        self.rounds = Histogram(ROUND_BOUNDS)
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        self.watch(self._wakeup_read, select.EPOLLIN, self._on_wakeup)

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Call back in each round in which the descriptor is ready; replaces an earlier watch."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def redirect(self, fd: int, callback: Callback) -> None:
        """Call another one back for a descriptor that is watched, which cannot fail."""
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Stop watching, before the descriptor is closed; forgetting twice is fine."""
        if self._callbacks.pop(fd, None):
            self._epoll.unregister(fd)

    def call_after(self, seconds: float, callback: Callback) -> Timer:
        if len(self._timers) >= self._purge_at:
            self._purge_cancelled()
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, (timer.deadline, next(self._order), timer))
        return timer

    def _purge_cancelled(self) -> None:
        # A job's time-out may be days away when the job ends after a second.
        self._timers = [entry for entry in self._timers if entry[2].pending]
        heapq.heapify(self._timers)
        self._purge_at = 2 * len(self._timers) + _PURGE_MARGIN

    def after_each_round(self, callback: Callback) -> None:
        """Call once after all callbacks of a round, for what is better done once than for each event.

        Those that came before are called first.
        """
        self._after_round.append(callback)

    def on_signal(self, signum: int, callback: Callback) -> None:
        self._signals[signum] = callback
        signal.signal(signum, lambda *_: None)

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        self._running = True
        while self._running:
            events = self._epoll.poll(self._timeout())
            began = time.monotonic()
            self.ready = len(events)
            for fd, _ in events:
                # An earlier callback of this round may have forgotten this one.
                if callback := self._callbacks.get(fd):
                    callback()
            self._fire_timers()
            self.end_round()
            self.rounds.add(time.monotonic() - began)

    def end_round(self) -> None:
        """Do what is done after each round, for who does not come to its end."""
        for callback in self._after_round:
            callback()

    def _timeout(self) -> float:
        # Each start cancels one that was to come many seconds later: nothing is to be done then.
        while self._timers and not self._timers[0][2].pending:
            heapq.heappop(self._timers)
        if not self._timers:
            return -1
        return min(max(0.0, self._timers[0][0] - time.monotonic()), _LONGEST_WAIT)

    def _fire_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2].fire()

    def _on_wakeup(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for signum in os.read(self._wakeup_read, 4096):
                if callback := self._signals.get(signum):
                    callback()

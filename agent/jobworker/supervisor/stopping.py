"""A stop under way: a signal, a grace, the kill of the whole group, and word of what does not go away."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable

from jobworker.jobs import EndReason
from jobworker.kernel.cgroup.base import Group
from jobworker.supervisor.loop import Loop, Timer

# A kill that has left something alive (a tree without a cgroup that forks faster than it is found) is repeated.
_KILL_AGAIN = 1.0


class Stopping:
    """Stops one group; can be hastened, not called off.

    Args:
        reason: why, for the job's end reason.
        kill_wait: seconds from the kill until `on_stuck` is called, if the group is still there.

    Attributes:
        kill_at: when the group is killed, or was, on the monotonic clock; None before that is arranged.
        unsent: the signal that the processes have to be sent still, if any.
    """

    def __init__(
        self, loop: Loop, group: Group, reason: EndReason, kill_wait: float, on_stuck: Callable[[], None]
    ) -> None:
        self.reason = reason
        self.kill_at: float | None = None
        self.unsent: int | None = None
        self._loop = loop
        self._group = group
        self._kill_wait = kill_wait
        self._on_stuck = on_stuck
        self._kill_timer: Timer | None = None
        self._stuck_timer: Timer | None = None

    def signal(self, signum: int) -> None:
        """Signal all processes; those that are stopped are let go on, or they would not see it."""
        with contextlib.suppress(OSError):
            self._group.signal_all(signum, signal.SIGCONT)
        self.unsent = None

    def kill_after(self, grace: float) -> None:
        """Kill after this many seconds, or earlier if that has been arranged."""
        at = time.monotonic() + grace
        if self.kill_at is not None and self.kill_at <= at:
            return
        if self._kill_timer:
            self._kill_timer.cancel()
        self.kill_at = at
        self._kill_timer = self._loop.call_after(grace, self.kill)

    def kill(self) -> None:
        if self._kill_timer:
            self._kill_timer.cancel()
        # A group that somebody else has removed has nothing in it.
        with contextlib.suppress(OSError):
            self._group.kill()
        self._kill_timer = self._loop.call_after(_KILL_AGAIN, self.kill)
        if self._stuck_timer is None:
            self._stuck_timer = self._loop.call_after(self._kill_wait, self._on_stuck)

    def end(self) -> None:
        """The group is gone."""
        for timer in (self._kill_timer, self._stuck_timer):
            if timer:
                timer.cancel()

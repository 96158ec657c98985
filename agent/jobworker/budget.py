"""A bound on how often something may be done: at a rate, and so often at once."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """Fills up by `rate` a second to `burst` at most, where it begins.

    Args:
        now: a clock, in seconds.
    """

    def __init__(self, rate: float, burst: float, now: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = self._left = burst
        self._now = now
        self._at = now()

    def take(self) -> bool:
        """True if it may be done once more, which is taken to happen."""
        self._fill()
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def reserve(self, longest: float) -> float:
        """In how many seconds it may be done, behind what was reserved before; `longest` if that is later."""
        self._fill()
        if (wait := (1 - self._left) / self._rate) >= longest:
            return longest
        self._left -= 1
        return max(0.0, wait)

    @property
    def wait(self) -> float:
        """In how many seconds it may be done once more, if nobody does it before."""
        self._fill()
        return max(0.0, (1 - self._left) / self._rate)

    def _fill(self) -> None:
        now = self._now()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now

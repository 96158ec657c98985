"""How long things took, as a distribution that is of the same size however many there were."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram as it was at one moment.

    Attributes:
        counts: how many fell under each bound and over the one before; the last, over all. None for nothing yet.
        seconds: all of them together.
    """

    counts: tuple[int, ...] = ()
    seconds: float = 0.0


NOTHING_YET = Distribution()


class Histogram:
    """Takes durations in.

    Args:
        bounds: in seconds, each larger than the one before; one that is met belongs to it.
        before: to go on from; left out if it is of other bounds.
    """

    __slots__ = ("_bounds", "_counts", "_seconds")

    def __init__(self, bounds: tuple[float, ...], before: Distribution = NOTHING_YET) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._seconds = 0.0
        if len(before.counts) == len(self._counts):
            self._counts, self._seconds = list(before.counts), before.seconds

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._seconds += seconds

    def snapshot(self) -> Distribution:
        return Distribution(tuple(self._counts), self._seconds)

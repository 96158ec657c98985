"""The order of all changes of jobs, by numbers that no death of a supervisor sets back.

A revision is a time of the host's monotonic clock, which no other life of this boot can have given out before. So
nothing has to be stored to go on from, and what a full disk did not take cannot lead to the same number twice.
"""

from __future__ import annotations

import time


class Revisions:
    """Gives out revisions.

    Attributes:
        epoch: within which they can be compared: this agent, since the host's boot.
        began: the first one.
        newest: the last one that was given out.
        removed: that of the last removal; what earlier lives removed has been before this one's first.
    """

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.began = self.newest = self.removed = time.monotonic_ns()

    def next(self) -> int:
        self.newest = max(self.newest + 1, time.monotonic_ns())
        return self.newest

    def next_removed(self) -> int:
        self.removed = self.next()
        return self.removed

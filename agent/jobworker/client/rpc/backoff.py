"""Pauses between attempts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Bounded attempts with pauses that double.

    Attributes:
        attempts: after the first one.
        first: the first pause, in seconds.
        longest: no pause is longer, in seconds.
    """

    attempts: int
    first: float = 0.1
    longest: float = 5.0

    def pauses(self) -> Iterator[float]:
        """The pauses of one run of failures, in seconds.

        Each is shortened by a random part of up to a half: clients that lost the same agent together
        must not all come back together.
        """
        pause = self.first
        for _ in range(self.attempts):
            yield pause * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards no secret
            pause = min(pause * 2, self.longest)

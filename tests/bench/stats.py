"""Samples to figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

median = statistics.median


def p99(samples: Sequence[float]) -> float:
    """The 99th percentile; of fewer than a hundred samples, close to the largest."""
    return percentile(samples, 99)


def percentile(samples: Sequence[float], percent: int) -> float:
    """Between the two samples next to it, linearly; `samples` are two or more."""
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]

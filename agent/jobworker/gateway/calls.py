"""How many calls there were, how they ended, and how long they took."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from jobworker.gateway.access import NEEDED
from jobworker.histogram import Histogram

# Upper bounds in seconds; streams and long waits are beyond the last one.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_DENIED = ("UNAUTHENTICATED", "PERMISSION_DENIED")


@dataclass(slots=True)
class Calls:
    """Counts of calls since the gateway's start, by method as `label` has it."""

    open: Counter[str] = field(default_factory=Counter)
    by_code: Counter[tuple[str, str]] = field(default_factory=Counter)
    denials: Counter[str] = field(default_factory=Counter)
    durations: dict[str, Histogram] = field(default_factory=dict)

    def started(self, method: str) -> None:
        self.open[label(method)] += 1

    def ended(self, method: str, code: str, seconds: float, reason: str) -> None:
        name = label(method)
        self.open[name] -= 1
        self.by_code[name, code] += 1
        self.durations.setdefault(name, Histogram(BOUNDS)).add(seconds)
        if code in _DENIED:
            self.denials[reason] += 1


def label(method: str) -> str:
    """`Service/Method`; one name for all methods that do not exist, of which a peer can make up any number."""
    return method.removeprefix("/") if method in NEEDED else "unknown"

"""Jobs by age: ordered sets of positions, and the choice of the shortest one that answers a question."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable, Iterator
from itertools import islice

# When the job was made (ns of Unix time), and its id.
Position = tuple[int, str]


class Timeline:
    """Positions in their order. New jobs are the newest nearly always, so adding is an append."""

    def __init__(self) -> None:
        self._positions: list[Position] = []

    def __len__(self) -> int:
        return len(self._positions)

    def add(self, position: Position) -> None:
        insort(self._positions, position)

    def remove(self, position: Position) -> None:
        del self._positions[bisect_left(self._positions, position)]

    def newest_first(self, before: Position | None) -> Iterator[Position]:
        """Those that are older than `before`, or all."""
        end = len(self._positions) if before is None else bisect_left(self._positions, before)
        return (self._positions[i] for i in range(end - 1, -1, -1))

    def oldest_first(self) -> Iterator[Position]:
        return iter(self._positions)


class Timelines:
    """The same positions under several keys each: every key has a timeline of its own."""

    def __init__(self) -> None:
        self._timelines: dict[Hashable, Timeline] = {}

    def add(self, position: Position, keys: Iterable[Hashable]) -> None:
        for key in keys:
            self._timelines.setdefault(key, Timeline()).add(position)

    def remove(self, position: Position, keys: Iterable[Hashable]) -> None:
        for key in keys:
            timeline = self._timelines[key]
            timeline.remove(position)
            if not timeline:
                del self._timelines[key]

    def count(self, keys: Iterable[Hashable]) -> int:
        return sum(len(self._timelines[key]) for key in keys if key in self._timelines)

    def oldest(self, keys: Iterable[Hashable], most: int) -> list[Position]:
        """Up to `most` positions under any of the keys, oldest first; the keys have none in common."""
        found = (self._timelines[key].oldest_first() for key in keys if key in self._timelines)
        return list(islice(heapq.merge(*found), most))

    def fewest(self, choices: Iterable[tuple[Hashable, ...]], before: Position | None) -> Iterator[Position]:
        """Positions under any key of one of the choices, newest first.

        What is looked for must be under every one of the choices, so the one with the fewest positions will do.
        """
        keys = min(choices, key=self.count)
        found = (self._timelines[key].newest_first(before) for key in keys if key in self._timelines)
        return heapq.merge(*found, reverse=True)

"""Where a stream begins and ends: by lines and times, over many segments, with some of them gone."""

# ruff: noqa: S311 - seeded, so that what fails fails again

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobworker.errors import OutputDropped
from jobworker.gateway import seek
from jobworker.gateway.seek import Log, View, locate
from jobworker.gateway.segments import Segments
from jobworker.jobs import Source
from jobworker.wire.messages import LogSegment, OpenLog
from jobworker.wire.output_index import DROPPED, LOST, NOT_WRITTEN, RECORD
from support.scripted_supervisor import Answer, ScriptedSupervisor, job_id, linked

SEGMENT_BYTES = 40


@dataclass
class Written:
    """A log as its job wrote it: each byte with its source and time."""

    data: bytearray = field(default_factory=bytearray)
    sources: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    why_gone: str = NOT_WRITTEN

    def add(self, data: bytes, source: int, time: int) -> None:
        self.data += data
        self.sources += [source] * len(data)
        self.times += [time] * len(data)

    def segment(self, number: int) -> tuple[bytes, bytes]:
        """The bytes and the index of a segment."""
        start = number * SEGMENT_BYTES
        stop = min(start + SEGMENT_BYTES, len(self.data))
        keys = dict(enumerate(zip(self.sources[start:stop], self.times[start:stop], strict=True), start))
        starts = [at for at in range(start, stop) if at == start or keys[at] != keys[at - 1]]
        ends = [*starts[1:], stop]
        records = zip(starts, ends, strict=True)
        index = [RECORD.pack(at, end - at, keys[at][0], 0, keys[at][1]) for at, end in records]
        return bytes(self.data[start:stop]), b"".join(index)

    @property
    def lived_ns(self) -> tuple[int, int]:
        """Of a job that wrote at once, and ended when it had."""
        return (self.times[0], self.times[-1]) if self.times else (0, 0)

    def goes_on(self, number: int) -> int:
        """Where there may be output behind a segment that is gone."""
        there = (at for at in range(number, len(self.data) // SEGMENT_BYTES) if at not in self.gone)
        return next(there, len(self.data) // SEGMENT_BYTES) * SEGMENT_BYTES

    def tail(self, lines: int, source: Source | None) -> bytes:
        wrote = bytes(byte for byte, by in zip(self.data, self.sources, strict=True) if source in {None, by})
        return b"".join(wrote.splitlines(keepends=True)[-lines:]) if lines else b""

    def behind(self, offset: int, source: Source | None) -> bytes:
        pairs = list(zip(self.data, self.sources, strict=True))[offset:]
        return bytes(byte for byte, by in pairs if source in {None, by})


class Logs(ScriptedSupervisor):
    """Hands out segments of logs, by the number of the job."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.logs: dict[str, Written] = {}
        self.handlers[OpenLog] = self._open

    def _open(self, request: OpenLog) -> Answer:
        log = self.logs[request.job_id]
        start = request.segment * SEGMENT_BYTES
        if request.segment in log.gone:
            raise OutputDropped(request.job_id, start, log.why_gone, log.goes_on(request.segment))
        files = []
        for content in log.segment(request.segment):
            files.append(os.memfd_create("log"))
            os.write(files[-1], content)
        return Answer(LogSegment(request.job_id, request.segment, start), tuple(files))


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Logs]:
    scripted = Logs(str(tmp_path))
    yield scripted
    scripted.close()


def located(
    supervisor: Logs, asked: list[tuple[Written, View]], source: Source | None = None
) -> list[tuple[int, int]]:
    """Where each of these parts is."""
    for number, (written, _) in enumerate(asked):
        supervisor.logs[job_id(number)] = written

    async def scenario(link: Any) -> list[tuple[int, int]]:
        segments = Segments(link, 8)
        logs = [Log(job_id(number), SEGMENT_BYTES, source) for number in range(len(asked))]
        return [
            await locate(segments, log, view, len(written.data), written.lived_ns)
            for log, (written, view) in zip(logs, asked, strict=True)
        ]

    return linked(supervisor.path, scenario)


def a_log(chance: random.Random) -> Written:
    log, time = Written(), 1_000
    for _ in range(chance.randrange(40)):
        time += chance.choice([0, 1, 30])
        line = bytes(chance.choice(b"ab\n\n") for _ in range(chance.randrange(1, 12)))
        log.add(line, chance.choice(list(Source)), time)
    return log


def test_since_a_time_tells_of_all_that_was_dropped(supervisor: Logs) -> None:
    log = Written(gone={0, 1, 2}, why_gone=DROPPED)
    for number in range(100):
        log.add(b"%03d\n" % number, Source.STDOUT, 1_000 + number)
    first = log.times[3 * SEGMENT_BYTES]
    # Some of it may be of that time.
    assert located(supervisor, [(log, View(since_ns=first - 5))]) == [(0, 400)]
    assert located(supervisor, [(log, View(since_ns=first + 1))]) == [(3 * SEGMENT_BYTES + 4, 400)]


@pytest.mark.parametrize("block", [7, 64 * 1024])
@pytest.mark.parametrize("source", [None, *Source])
def test_the_last_lines(
    supervisor: Logs, source: Source | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seek, "_BLOCK_BYTES", block)
    chance = random.Random(1)
    asked = [(a_log(chance), View(tail_lines=chance.randrange(20))) for _ in range(150)]
    for (log, view), (start, end) in zip(asked, located(supervisor, asked, source), strict=True):
        assert view.tail_lines is not None
        assert log.behind(start, source) == log.tail(view.tail_lines, source)
        assert end == len(log.data)


def test_times(supervisor: Logs) -> None:
    chance = random.Random(2)
    asked = []
    for _ in range(200):
        since = chance.randrange(990, 1_400)
        asked.append((a_log(chance), View(since_ns=since, until_ns=since + chance.randrange(1, 200))))
    for (log, view), (start, end) in zip(asked, located(supervisor, asked), strict=True):
        assert view.since_ns is not None
        assert view.until_ns is not None
        expected = [at for at, time in enumerate(log.times) if view.since_ns <= time < view.until_ns]
        assert list(range(start, end)) == expected


def test_the_last_lines_since_and_before_a_time(supervisor: Logs) -> None:
    log = Written()
    for number in range(100):
        log.add(b"%02d\n" % number, Source.STDOUT, 1_000 + number)
    asked = [
        (log, View(tail_lines=5, since_ns=1_098)),
        (log, View(tail_lines=5, since_ns=1_010)),
        (log, View(tail_lines=5, until_ns=1_050)),
        (log, View(offset=150, until_ns=1_050)),
        (log, View(offset=200, until_ns=1_050)),
        (log, View(offset=301, until_ns=1_050)),
    ]
    expected = [(294, 300), (285, 300), (135, 150), (150, 150), (200, 200), (301, 300)]
    assert located(supervisor, asked) == expected


def test_segments_that_are_gone(supervisor: Logs) -> None:
    log = Written(gone={0, 1, 2, 5, 6})
    for number in range(100):
        log.add(b"%03d\n" % number, Source.STDOUT, 1_000 + number)
    for time in range(990, 1_110):
        ((start, _),) = located(supervisor, [(log, View(since_ns=time))])
        later = [at for at, then in enumerate(log.times) if then >= time and at // SEGMENT_BYTES not in log.gone]
        assert start <= min(later, default=400)
        earlier = [at for at in range(start, 400) if log.times[at] < time]
        assert {at // SEGMENT_BYTES for at in earlier} <= log.gone
    assert located(supervisor, [(log, View(tail_lines=95))]) == [(0, 400)]
    assert located(supervisor, [(log, View(tail_lines=29))]) == [(284, 400)]
    # What is before the 30th line is gone, and told as well.
    assert located(supervisor, [(log, View(tail_lines=30))]) == [(200, 400)]


# Of 25 segments: behind all, in a row that is long, some that are there between those that are not.
GONE = [
    {23, 24},
    {10, *range(15, 25)},
    set(range(5, 21)),
    {*range(4, 14), *range(15, 24)},
    {0, 2, 5, *range(8, 20)},
    {*range(2, 12), *range(13, 25)},
]


@pytest.mark.parametrize("gone", GONE)
def test_what_was_not_written_hides_nothing_else(supervisor: Logs, gone: set[int]) -> None:
    log = Written(gone=gone)
    for number in range(250):
        log.add(b"%03d\n" % number, Source.STDOUT, 1_000 + number)
    times = range(995, 1_260, 13)
    views = [View(since_ns=time) for time in times] + [View(until_ns=time) for time in times]
    found = located(supervisor, [(log, view) for view in views])

    def there(offsets: range) -> set[int]:
        return {at for at in offsets if at // SEGMENT_BYTES not in gone}

    for time, since, until in zip(times, found[: len(times)], found[len(times) :], strict=True):
        at = min(max(0, 4 * (time - 1_000)), len(log.data))
        assert there(range(*since)) == there(range(at, len(log.data)))
        assert there(range(*until)) == there(range(at))


def test_a_segment_that_is_gone_is_asked_for_once(supervisor: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seek, "_BLOCK_BYTES", 4)
    log = Written(gone={1, 2})
    log.add(b"one\n", Source.STDOUT, 1)
    log.add(b"x" * (SEGMENT_BYTES * 4 - 4), Source.STDOUT, 1)
    assert located(supervisor, [(log, View(tail_lines=2))]) == [(0, len(log.data))]
    assert supervisor.asked(OpenLog) == 4


def test_of_very_many_segments_that_are_gone_few_are_asked_for(supervisor: Logs) -> None:
    log = Written(gone=set(range(3, 2_000)))
    log.add(b"x" * SEGMENT_BYTES * 2_000, Source.STDOUT, 1)
    located(supervisor, [(log, View(since_ns=1))])
    assert supervisor.asked(OpenLog) < 50


def test_a_clock_that_was_set_back_makes_no_endless_search(supervisor: Logs) -> None:
    chance = random.Random(3)
    asked = []
    for _ in range(100):
        log = Written()
        for _ in range(60):
            log.add(b"x", Source.STDOUT, chance.randrange(1_000, 1_100))
        asked.append((log, View(since_ns=chance.randrange(990, 1_110))))
    for (log, view), (start, end) in zip(asked, located(supervisor, asked), strict=True):
        assert view.since_ns is not None
        assert start == end or log.times[start] >= view.since_ns
        assert start == 0 or log.times[start - 1] < view.since_ns


@pytest.mark.parametrize("dropped", [0, 300])
def test_a_time_is_found_in_few_looks(supervisor: Logs, dropped: int) -> None:
    even, uneven = (Written(gone=set(range(dropped)), why_gone=DROPPED) for _ in range(2))
    for number in range(1_000):
        even.add(b"x" * SEGMENT_BYTES, Source.STDOUT, 1_000 * (number + 1))
        # All that was written before was written at once, and what comes then ever slower.
        uneven.add(b"x" * SEGMENT_BYTES, Source.STDOUT, number + int(1.1 ** max(0, number - 800)))

    def looks(log: Written, number: int) -> int:
        before, time = supervisor.asked(OpenLog), log.times[number * SEGMENT_BYTES]
        ((start, _),) = located(supervisor, [(log, View(since_ns=time))])
        assert start == number * SEGMENT_BYTES
        return supervisor.asked(OpenLog) - before

    numbers = range(dropped + 2, 1_000, 41)
    # Both sides of the place, or three there; and one that is dropped.
    assert max(looks(even, number) for number in numbers) <= 3 + 2 * bool(dropped)
    halvings = 10
    assert max(looks(uneven, number) for number in numbers) <= seek._GUESSES + halvings + 1


def test_what_was_lost_holds_no_lines(supervisor: Logs) -> None:
    log = Written()
    log.add(b"one\ntwo\n", Source.STDOUT, 1)
    log.add(b"\0" * 100, LOST, 2)
    log.add(b"three\n", Source.STDOUT, 3)
    for source in (None, Source.STDOUT):
        views = [View(tail_lines=1), View(tail_lines=2), View(tail_lines=3)]
        starts = [start for start, _ in located(supervisor, [(log, view) for view in views], source)]
        assert starts[1:] == [4, 0]


def test_a_longer_log_is_not_looked_through(supervisor: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seek, "MAX_TAIL_BYTES", 3 * SEGMENT_BYTES)
    log = Written()
    log.add(b"no newline" * 4_000, Source.STDOUT, 1)
    assert located(supervisor, [(log, View(tail_lines=1))]) == [(40_000 - 3 * SEGMENT_BYTES, 40_000)]
    assert supervisor.asked(OpenLog) == 3
    located(supervisor, [(log, View(since_ns=1))])
    assert supervisor.asked(OpenLog) < 3 + 15

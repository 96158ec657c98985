"""Output of one source alone: found without a look at each segment in which the other one wrote."""

# ruff: noqa: S311 - seeded, so that what fails fails again

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.gateway.output import Fixed, Output
from jobworker.gateway.seek import Log
from jobworker.gateway.segments import Segments
from jobworker.jobs import OutputFormat, Source
from jobworker.supervisor import index
from jobworker.supervisor.log_reading import open_segment
from jobworker.wire.messages import LogSegment, OpenLog
from jobworker.wire.output_index import RECORD
from support.output_logs import ID, feed, open_log, record_of
from support.scripted_supervisor import Answer, ScriptedSupervisor, linked

OUT, ERR = Source.STDOUT, Source.STDERR
# Ends within a cell of lines as well as on the grid of these.
SEGMENT = 10_240


class OneLog(ScriptedSupervisor):
    """Writes a log, and hands its segments out."""

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory))
        self._files = directory / "log"
        self._files.mkdir()
        self.log = open_log(self._files, SEGMENT)
        self.handlers[OpenLog] = self._open

    def die(self) -> None:
        self.log.close()
        self.log = open_log(self._files, SEGMENT)

    def cut(self, size: int) -> None:
        """Take bytes off the end of the open segment."""
        file = self._files / f"job_{ID}.log"
        os.truncate(file, max(0, file.stat().st_size - size))

    def forget_who_wrote_alone(self) -> None:
        """As an agent of before has written the index."""
        for file in self._files.glob("*.idx*"):
            records = list(RECORD.iter_unpack(file.read_bytes()))
            file.write_bytes(b"".join(RECORD.pack(*record[:3], 0, record[4]) for record in records))

    def _open(self, request: OpenLog) -> Answer:
        directory = os.open(self._files, os.O_RDONLY)
        try:
            record = record_of(self.log, SEGMENT)
            opened = open_segment(directory, record, request.segment, self.log.holdings)
        finally:
            os.close(directory)
        answer = LogSegment(ID, request.segment, opened.start)
        return Answer(answer, (opened.log_fd, opened.index_fd))

    def read(self, source: Source, form: OutputFormat = OutputFormat.BINARY, offset: int = 0) -> list[Any]:
        """The messages of a stream of what is there."""

        async def scenario(link: Any) -> list[Any]:
            extent, log = Fixed(self.log.size, True, self.log.lost), Log(ID, SEGMENT, source, format=form)
            async with aclosing(Output(Segments(link, 8)).pieces(log, offset, extent)) as pieces:
                return [pb.StreamResponse.FromString(piece.message) async for piece in pieces if piece.message]

        return linked(self.path, scenario)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[OneLog]:
    opened = OneLog(tmp_path)
    yield opened
    opened.close()
    opened.log.close()


def data_of(messages: list[Any]) -> bytes:
    return b"".join(message.chunk.data for message in messages)


@pytest.mark.parametrize("form", [OutputFormat.BINARY, OutputFormat.TEXT])
def test_of_many_segments_of_the_other_source_few_are_looked_at(log: OneLog, form: OutputFormat) -> None:
    feed(log.log, b"begun\n", ERR)
    feed(log.log, b"out\n" * SEGMENT * 50)
    feed(log.log, b"half\n", ERR)
    feed(log.log, b"out\n" * SEGMENT * 50)
    feed(log.log, b"ended\n", ERR)
    assert data_of(log.read(ERR, form)) == b"begun\nhalf\nended\n"
    assert log.asked(OpenLog) < 40


def test_a_death_costs_one_more_search(log: OneLog) -> None:
    for _ in range(4):
        feed(log.log, b"out\n" * SEGMENT * 25)
        log.die()
    feed(log.log, b"ended\n", ERR)
    assert data_of(log.read(ERR)) == b"ended\n"
    assert log.asked(OpenLog) < 80


def test_a_source_that_wrote_in_each_segment_takes_no_search(log: OneLog) -> None:
    for _ in range(100):
        feed(log.log, b"out\n" * (SEGMENT // 4 - 1))
        feed(log.log, b"err\n", ERR)
    assert data_of(log.read(ERR)) == b"err\n" * 100
    assert log.asked(OpenLog) == 100


@pytest.mark.parametrize("seed", range(20))
def test_what_is_passed_over_changes_nothing_that_is_told(log: OneLog, seed: int) -> None:
    chance, wrote = random.Random(seed), {OUT: b"", ERR: b""}
    was_cut = False
    for _ in range(chance.randrange(2, 12)):
        source = chance.choice([OUT, OUT, ERR])
        line = bytes(chance.choice(b"abc") for _ in range(chance.choice([0, 9, 5_000])))
        data = (line + chance.choice([b"\n", b""])) * chance.choice([1, 1, 30, SEGMENT * 40 // (len(line) + 1)])
        feed(log.log, data, source)
        wrote[source] += data
        happens = chance.randrange(12)
        if happens < 2:
            log.die()
        elif happens == 2:
            log.cut(chance.randrange(1, 2 * SEGMENT))
            was_cut = True
    asked = [(source, form, chance.randrange(log.log.size + 1)) for source in wrote for form in OutputFormat]
    asked += [(source, OutputFormat.BINARY, 0) for source in wrote]
    told = [log.read(*one) for one in asked]
    log.forget_who_wrote_alone()
    assert told == [log.read(*one) for one in asked]
    if not was_cut:
        assert [data_of(messages) for messages in told[-2:]] == list(wrote.values())


def test_what_was_cut_off_is_told_of_among_what_is_passed_over(log: OneLog) -> None:
    feed(log.log, b"out\n" * SEGMENT * 5)
    log.cut(100)
    feed(log.log, b"out\n" * SEGMENT * 5)
    lost = [message.gap.length for message in log.read(ERR) if message.HasField("gap")]
    assert lost == [100]


def test_so_many_segments_that_they_are_not_counted(log: OneLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MAX_ALONE", 10)
    feed(log.log, b"out\n" * SEGMENT * 25)
    feed(log.log, b"ended\n", ERR)
    assert data_of(log.read(ERR)) == b"ended\n"
    assert 10 < log.asked(OpenLog) < 80

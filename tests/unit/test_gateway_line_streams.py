"""Streams of lines: over segments, while the log grows, behind what was dropped, and for many followers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.errors import InvalidField, OutputDropped
from jobworker.gateway import line_pieces
from jobworker.gateway.follow import Feeds
from jobworker.gateway.lines import CELL, Standing
from jobworker.gateway.output import Extent, Fixed, Output
from jobworker.gateway.pieces import Part
from jobworker.gateway.seek import Log
from jobworker.gateway.segments import Segments
from jobworker.jobs import OutputFormat, Source
from jobworker.wire.messages import FollowLog, LogGrew, LogSegment, OpenLog
from jobworker.wire.output_index import DROPPED
from support.logs import Write, counted_reads, files, segment
from support.scripted_supervisor import Answer, ScriptedSupervisor, job_id, linked, record

OUT, ERR = Source.STDOUT, Source.STDERR
ID = job_id(1)
SEGMENT_BYTES = 10
WRITES = [Write(OUT, b"first\nsec"), Write(ERR, b"error\n"), Write(OUT, b"ond\nthird\n"), Write(ERR, b"unended")]
SIZE = 32
LOG = Log(ID, SEGMENT_BYTES, None, format=OutputFormat.TEXT)


class LogSupervisor(ScriptedSupervisor):
    """Hands out segments of what `WRITES` has."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.records = [record(1, segment_bytes=SEGMENT_BYTES)]
        self.gone: set[int] = set()
        self.handlers[OpenLog] = self._open

    def _open(self, request: OpenLog) -> Answer:
        start = request.segment * SEGMENT_BYTES
        if request.segment in self.gone:
            raise OutputDropped(ID, start, DROPPED)
        made = files(WRITES, start, start + SEGMENT_BYTES)
        return Answer(LogSegment(ID, request.segment, start), made)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[LogSupervisor]:
    scripted = LogSupervisor(str(tmp_path))
    yield scripted
    scripted.close()


async def collect(output: Output, extent: Extent, offset: int = 0, log: Log = LOG) -> list[Any]:
    async with aclosing(output.pieces(log, offset, extent)) as pieces:
        messages = [pb.StreamResponse.FromString(piece.message) async for piece in pieces if piece.message]
    return [getattr(message, str(message.WhichOneof("item"))) for message in messages]


def read(supervisor: LogSupervisor, offset: int = 0, extent: Extent | None = None, log: Log = LOG) -> list[Any]:
    """The messages of a stream of what is there."""

    async def scenario(link: Any) -> list[Any]:
        return await collect(Output(Segments(link, 8)), extent or Fixed(SIZE, output_ended=True), offset, log)

    return linked(supervisor.path, scenario)


def text_of(messages: list[Any]) -> bytes:
    return b"".join(message.data for message in messages)


def test_lines_go_over_segments_and_come_whole(supervisor: LogSupervisor) -> None:
    assert text_of(read(supervisor)) == b"first\nerror\nsecond\nthird\nunended\n"


@pytest.mark.parametrize(
    ("offset", "text"),
    [
        (5, b"first\nerror\nsecond\nthird\nunended\n"),
        (6, b"error\nsecond\nthird\nunended\n"),
        (15, b"second\nthird\nunended\n"),
        (18, b"second\nthird\nunended\n"),
        (25, b"unended\n"),
        (SIZE, b""),
    ],
)
def test_a_stream_begins_with_the_first_line_that_ends_behind_the_offset(
    supervisor: LogSupervisor, offset: int, text: bytes
) -> None:
    assert text_of(read(supervisor, offset)) == text


def test_lines_of_one_source(supervisor: LogSupervisor) -> None:
    log = Log(ID, SEGMENT_BYTES, ERR, format=OutputFormat.TEXT)
    messages = read(supervisor, log=log)
    assert text_of(messages) == b"error\nunended\n"
    assert messages[0].source == pb.OUTPUT_SOURCE_STDERR


def test_without_the_end_of_the_output_the_last_line_is_still_to_come(supervisor: LogSupervisor) -> None:
    *chunks, end = read(supervisor, extent=Fixed(SIZE, output_ended=False))
    assert text_of(chunks) == b"first\nerror\nsecond\nthird\n"
    assert end == pb.OutputEnd(offset=25)


@pytest.mark.parametrize("size", [SIZE, 0])
def test_an_offset_beyond_the_end_is_refused(supervisor: LogSupervisor, size: int) -> None:
    with pytest.raises(InvalidField, match=f"there is 0 to {size}"):
        read(supervisor, SIZE + 1, Fixed(size, output_ended=True))


def test_a_dropped_segment_cuts_lines_and_is_a_gap(supervisor: LogSupervisor) -> None:
    supervisor.gone = {1}
    first, gap, *rest = read(supervisor)
    assert first == pb.OutputChunk(offset=0, data=b"first\n", resume_offset=6)
    assert gap == pb.OutputGap(offset=10, length=10, reason=DROPPED, data="sec…\ne…\n".encode())
    assert text_of(rest) == b"hird\nunended\n"
    assert text_of(read(supervisor, 12)) == b"hird\nunended\n"


def test_followers_who_started_apart_share_the_encoding(supervisor: LogSupervisor) -> None:
    async def scenario(link: Any) -> list[list[bytes]]:
        output, extent = Output(Segments(link, 8)), Fixed(SIZE, output_ended=True)
        async with (
            aclosing(output.pieces(LOG, 0, extent)) as first,
            aclosing(output.pieces(LOG, 3, extent)) as second,
        ):
            begun = [(await anext(pieces)).message for pieces in (first, second)]
            rest = [[piece.message async for piece in pieces] for pieces in (first, second)]
            return [[begin, *messages] for begin, messages in zip(begun, rest, strict=True)]

    one, other = linked(supervisor.path, scenario)
    assert one[0] != other[0]
    assert [id(message) for message in one[1:-1]] == [id(message) for message in other[1:-1]]
    assert len(one) > 3


@pytest.mark.parametrize("every", [2, 20, 129, CELL])
def test_of_what_one_source_wrote_a_step_looks_at_a_bounded_part(every: int) -> None:
    """In a cell of single bytes, of which each so many is the one's, and all else the other one's."""
    writes = [Write(ERR if at % every == every - 1 else OUT, b"%d" % (at % 10)) for at in range(CELL)]
    made, log = segment(writes), Log(ID, 1 << 40, ERR, format=OutputFormat.TEXT)
    at, steps = Standing.at(0), []
    while at.read < CELL:
        with counted_reads() as reads:
            at = line_pieces.step(made, Part(log, at.read, CELL, lossy=False), at).standing
        steps.append(len(reads))
    assert at.open[0][1].data == b"".join(write.data for write in writes if write.source == ERR)
    assert max(steps) < 800


Step = Callable[[Output, Feeds], Awaitable[Any]]


def follow(supervisor: LogSupervisor, step: Step) -> Any:
    async def scenario(link: Any) -> Any:
        feeds = Feeds(link)
        link.listen(feeds.apply)
        return await step(Output(Segments(link, 8)), feeds)

    return linked(supervisor.path, scenario)


@pytest.mark.parametrize("offset", [0, 4])
def test_a_line_is_told_as_soon_as_it_is_complete(supervisor: LogSupervisor, offset: int) -> None:
    async def step(output: Output, feeds: Feeds) -> list[tuple[int, bytes]]:
        async with feeds.follow(ID) as feed, aclosing(output.pieces(LOG, offset, feed)) as pieces:
            await asyncio.to_thread(supervisor.wait_asked, FollowLog)
            received = []
            for size in range(1, SIZE + 1):
                supervisor.tell(LogGrew(ID, size, output_ended=size == SIZE))
                if size <= offset:
                    continue
                # Empty where there is nothing to be told.
                message = pb.StreamResponse.FromString((await anext(pieces)).message)
                if message.chunk.data:
                    received.append((size, message.chunk.data))
            end = pb.StreamResponse.FromString((await anext(pieces)).message).end
            return [*received, (end.offset, end.data)]

    assert follow(supervisor, step) == [
        (6, b"first\n"),
        (15, b"error\n"),
        (19, b"second\n"),
        (25, b"third\n"),
        (SIZE, b"unended\n"),
    ]


def test_who_follows_from_the_end_gets_the_whole_line_that_is_open_there(supervisor: LogSupervisor) -> None:
    async def step(output: Output, feeds: Feeds) -> bytes:
        async with feeds.follow(ID) as feed:
            following = asyncio.create_task(collect(output, feed, 9))
            await asyncio.to_thread(supervisor.wait_asked, FollowLog)
            for size in (9, 15, SIZE):
                supervisor.tell(LogGrew(ID, size, output_ended=size == SIZE))
            return text_of(await following)

    assert follow(supervisor, step) == b"error\nsecond\nthird\nunended\n"

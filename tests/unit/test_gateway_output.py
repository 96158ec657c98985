"""Streams of output: what is sent of a log that grows, is cut, is filtered, or is gone."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.errors import AgentUnavailable, InvalidField, JobNotFound, OutputDropped
from jobworker.gateway import link as link_module
from jobworker.gateway import output as output_module
from jobworker.gateway.follow import Feeds
from jobworker.gateway.output import Extent, Fixed, Output
from jobworker.gateway.seek import Log
from jobworker.gateway.segments import Segment, Segments
from jobworker.jobs import OutputFormat, Source
from jobworker.wire.messages import (
    FollowLog,
    InspectJob,
    JobRemoved,
    JobReply,
    LogGrew,
    LogSegment,
    OpenLog,
    UnfollowLog,
)
from jobworker.wire.output_index import DROPPED, LOST, NOT_WRITTEN, RECORD
from support.scripted_supervisor import Answer, ScriptedSupervisor, job_id, linked, record

ID = job_id(1)
SEGMENT_BYTES = 1000
BYTES = bytes(i * 7 % 251 for i in range(2_500))


def memfd(data: bytes) -> int:
    fd = os.memfd_create("log")
    os.write(fd, data)
    return fd


class LogSupervisor(ScriptedSupervisor):
    """Hands out segments of `BYTES`, of which stdout and stderr wrote 100 bytes each in turn."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.records = [record(1, segment_bytes=SEGMENT_BYTES)]
        self.gone: set[int] = set()
        self.why_gone, self.goes_on = DROPPED, 0
        # Whole hundreds of bytes that the agent could not write.
        self.lost: set[int] = set()
        self.handlers[OpenLog] = self._open

    def _open(self, request: OpenLog) -> Answer:
        start = request.segment * SEGMENT_BYTES
        if request.segment in self.gone:
            raise OutputDropped(ID, start, self.why_gone, self.goes_on)
        hundreds = range(start, start + SEGMENT_BYTES, 100)
        index = b"".join(RECORD.pack(at, 100, self.source_of(at), 0, 0) for at in hundreds)
        log = memfd(b"")
        for at in hundreds:
            # Of what was lost there is a hole, or less of a file.
            if at not in self.lost:
                os.pwrite(log, BYTES[at : at + 100], at - start)
        return Answer(LogSegment(ID, request.segment, start), (log, memfd(index)))

    def source_of(self, offset: int) -> int:
        hundred = offset // 100
        return LOST if hundred * 100 in self.lost else 1 + hundred % 2

    def opened(self) -> list[int]:
        return [request.segment for request in self.requests if isinstance(request, OpenLog)]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[LogSupervisor]:
    scripted = LogSupervisor(str(tmp_path))
    yield scripted
    scripted.close()


async def collect(
    output: Output,
    extent: Extent,
    offset: int = 0,
    source: Source | None = None,
    form: OutputFormat = OutputFormat.BINARY,
) -> list[Any]:
    """The messages of a whole stream, without those that are empty."""
    log = Log(ID, SEGMENT_BYTES, source, format=form)
    async with aclosing(output.pieces(log, offset, extent)) as pieces:
        messages = [pb.StreamResponse.FromString(piece.message) async for piece in pieces if piece.message]
    return [getattr(message, str(message.WhichOneof("item"))) for message in messages]


def read(
    supervisor: LogSupervisor,
    end: int,
    offset: int = 0,
    source: Source | None = None,
    form: OutputFormat = OutputFormat.BINARY,
) -> list[Any]:
    """The messages of a stream of what is there."""
    extent = Fixed(end, True, 100 * len(supervisor.lost))

    async def scenario(link: Any) -> list[Any]:
        return await collect(Output(Segments(link, 8)), extent, offset, source, form)

    return linked(supervisor.path, scenario)


def data_of(messages: list[Any]) -> bytes:
    return b"".join(message.data for message in messages if isinstance(message, pb.OutputChunk))


@pytest.mark.parametrize("offset", [0, 1, 999, 1000, 1001, 2499, 2500])
def test_all_bytes_from_an_offset_on(supervisor: LogSupervisor, offset: int) -> None:
    *chunks, end = read(supervisor, len(BYTES), offset)
    assert data_of(chunks) == BYTES[offset:]
    assert end == pb.OutputEnd(offset=len(BYTES), output_ended=True)
    for chunk in chunks:
        assert chunk.data == BYTES[chunk.offset : chunk.offset + len(chunk.data)]


@pytest.mark.parametrize("end", [0, 1, 999, 1000, 1001, 2000])
def test_no_byte_beyond_the_end(supervisor: LogSupervisor, end: int) -> None:
    assert data_of(read(supervisor, end)) == BYTES[:end]


@pytest.mark.parametrize("size", [1, 7, 256])
def test_chunks_are_bounded(supervisor: LogSupervisor, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_module, "CHUNK_BYTES", size)
    *chunks, _ = read(supervisor, len(BYTES))
    assert data_of(chunks) == BYTES
    assert max(len(chunk.data) for chunk in chunks) == size


@pytest.mark.parametrize("size", [7, 100, 256 * 1024])
@pytest.mark.parametrize("source", Source)
def test_one_source(supervisor: LogSupervisor, source: Source, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_module, "CHUNK_BYTES", size)
    *chunks, end = read(supervisor, len(BYTES), 50, source)
    expected = bytes(byte for at, byte in enumerate(BYTES) if at >= 50 and 1 + at // 100 % 2 == source)
    assert data_of(chunks) == expected
    assert {chunk.source for chunk in chunks} == {int(source)}
    assert end.offset == len(BYTES)


def test_an_offset_beyond_the_end_is_refused(supervisor: LogSupervisor) -> None:
    with pytest.raises(InvalidField, match="there is 0 to 100") as caught:
        read(supervisor, 100, 101)
    assert caught.value.field == "offset"


def test_a_segment_that_is_gone_is_a_gap(supervisor: LogSupervisor) -> None:
    supervisor.gone = {0, 1}
    gaps = [message for message in read(supervisor, len(BYTES), 10) if isinstance(message, pb.OutputGap)]
    assert gaps == [
        pb.OutputGap(offset=10, length=990, reason=DROPPED),
        pb.OutputGap(offset=1000, length=1000, reason=DROPPED),
    ]
    assert data_of(read(supervisor, len(BYTES), 10)) == BYTES[2000:]


@pytest.mark.parametrize("form", list(OutputFormat))
@pytest.mark.parametrize(("goes_on", "length"), [(1500, 1500), (2000, 2000), (1 << 60, len(BYTES))])
def test_what_is_not_there_is_asked_for_once(
    supervisor: LogSupervisor, form: OutputFormat, goes_on: int, length: int
) -> None:
    supervisor.goes_on, supervisor.gone = goes_on, {0}
    first, *rest = read(supervisor, len(BYTES), form=form)
    assert (first.offset, first.length, first.reason) == (0, length, DROPPED)
    assert not any(isinstance(message, pb.OutputGap) for message in rest)
    assert supervisor.opened() == [0, *range(length // SEGMENT_BYTES, 3)][: 1 if length == len(BYTES) else None]


def test_a_segment_that_is_shorter_than_told_is_a_gap(supervisor: LogSupervisor) -> None:
    *_, last_chunk, gap, end = read(supervisor, len(BYTES) + 200, 2000)
    assert last_chunk.offset + len(last_chunk.data) == gap.offset == len(BYTES)
    assert gap.length == 200
    assert end.offset == len(BYTES) + 200


LOSSES = [{0}, {900}, {900, 1000}, {500, 1700, 2400}, set(range(1000, 2000, 100)), set(range(0, 2500, 100))]


@pytest.mark.parametrize("source", [None, *Source])
@pytest.mark.parametrize("offset", [0, 950])
@pytest.mark.parametrize("lost", LOSSES)
def test_what_could_not_be_written_is_a_gap(
    supervisor: LogSupervisor, lost: set[int], offset: int, source: Source | None
) -> None:
    supervisor.lost = lost
    missing: set[int] = set()
    data: dict[int, int] = {}
    *items, end = read(supervisor, len(BYTES), offset, source)
    for item in items:
        if isinstance(item, pb.OutputGap):
            assert item.reason == NOT_WRITTEN
            missing.update(range(item.offset, item.offset + item.length))
        else:
            data.update(enumerate(item.data, item.offset))
    offsets = range(offset, len(BYTES))
    assert missing == {at for at in offsets if at // 100 * 100 in lost}
    wanted = {source} if source else {1, 2}
    assert data == {at: BYTES[at] for at in offsets if supervisor.source_of(at) in wanted}
    assert end == pb.OutputEnd(offset=len(BYTES), output_ended=True)


def test_a_segment_that_could_not_even_be_made_is_a_gap(supervisor: LogSupervisor) -> None:
    supervisor.lost, supervisor.gone = set(range(1000, 2000, 100)), {1}
    supervisor.why_gone = NOT_WRITTEN
    messages = read(supervisor, len(BYTES))
    assert [message for message in messages if isinstance(message, pb.OutputGap)] == [
        pb.OutputGap(offset=1000, length=1000, reason=NOT_WRITTEN)
    ]
    assert data_of(messages) == BYTES[:1000] + BYTES[2000:]


def test_followers_share_one_segment_and_one_encoding(supervisor: LogSupervisor) -> None:
    async def scenario(link: Any) -> tuple[list[Any], int]:
        output, extent = Output(Segments(link, 8)), Fixed(len(BYTES), output_ended=True)
        streams = (output.pieces(Log(ID, SEGMENT_BYTES, None), 0, extent) for _ in range(5))
        firsts = [await anext(stream) for stream in streams]
        return firsts, len({id(piece.message) for piece in firsts})

    firsts, different = linked(supervisor.path, scenario)
    assert (len(firsts), different) == (5, 1)
    assert supervisor.opened() == [0]


def test_segments_are_opened_once_by_all_who_come_at_the_same_time(supervisor: LogSupervisor) -> None:
    async def scenario(link: Any) -> None:
        output, extent = Output(Segments(link, 8)), Fixed(len(BYTES), output_ended=True)
        whole = await asyncio.gather(*(collect(output, extent) for _ in range(50)))
        assert {data_of(messages) for messages in whole} == {BYTES}

    linked(supervisor.path, scenario)
    assert supervisor.opened() == [0, 1, 2]


async def open_segments() -> int:
    await asyncio.sleep(0)  # the event loop itself holds what it handed out last
    return sum(isinstance(thing, Segment) for thing in gc.get_objects())


def test_few_segments_are_held_and_none_when_nobody_reads(supervisor: LogSupervisor) -> None:
    async def scenario(link: Any) -> tuple[int, int]:
        output, extent = Output(Segments(link, 1)), Fixed(len(BYTES), output_ended=True)
        async with aclosing(output.pieces(Log(ID, SEGMENT_BYTES, None), 0, extent)) as pieces:
            held = [await open_segments() async for _ in pieces]
        return max(held), await open_segments()

    assert linked(supervisor.path, scenario) == (1, 0)


def test_a_segment_that_comes_when_nobody_reads_any_more_is_closed(supervisor: LogSupervisor) -> None:
    left, hand_out = threading.Event(), supervisor.handlers[OpenLog]

    def late(request: OpenLog) -> Any:
        assert left.wait(30)
        return hand_out(request)

    supervisor.handlers[OpenLog] = late

    async def scenario(link: Any) -> int:
        output = Output(Segments(link, 8))
        reading = asyncio.create_task(collect(output, Fixed(len(BYTES), output_ended=True)))
        await asyncio.to_thread(supervisor.wait_asked, OpenLog)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        left.set()
        # Behind this answer, that one has come as well.
        await link.ask(InspectJob(ID), JobReply, repeatable=True)
        return await open_segments()

    assert linked(supervisor.path, scenario) == 0


# Following.

Step = Callable[[Output, Feeds], Awaitable[Any]]


def follow(supervisor: LogSupervisor, step: Step) -> Any:
    async def scenario(link: Any) -> Any:
        feeds = Feeds(link)
        link.listen(feeds.apply)
        return await step(Output(Segments(link, 8)), feeds)

    return linked(supervisor.path, scenario)


async def followed(output: Output, feeds: Feeds, offset: int = 0) -> list[Any]:
    async with feeds.follow(ID) as feed:
        return await collect(output, feed, offset)


def test_a_follower_gets_what_comes_and_then_the_end(supervisor: LogSupervisor) -> None:
    sizes = iter([(1, False), (999, False), (1000, False), (1001, False), (2500, False), (2500, True)])

    async def step(output: Output, feeds: Feeds) -> list[Any]:
        received: list[Any] = []
        async with feeds.follow(ID) as feed:
            async with aclosing(output.pieces(Log(ID, SEGMENT_BYTES, None), 0, feed)) as pieces:
                growing = asyncio.create_task(grow())
                received = [pb.StreamResponse.FromString(piece.message) async for piece in pieces]
            await growing
        return received

    async def grow() -> None:
        await asyncio.to_thread(supervisor.connected.wait)
        for size, ended in sizes:
            supervisor.tell(LogGrew(ID, size, ended))
            await asyncio.sleep(0.01)  # so that they are told one by one

    *chunks, end = follow(supervisor, step)
    assert b"".join(message.chunk.data for message in chunks) == BYTES
    assert end.end == pb.OutputEnd(offset=2500, output_ended=True)


def test_a_follower_is_told_of_what_is_lost_meanwhile(supervisor: LogSupervisor) -> None:
    supervisor.lost = {500}
    sizes = iter([(500, 0), (530, 30), (600, 100), (700, 100)])

    async def step(output: Output, feeds: Feeds) -> list[Any]:
        received: list[Any] = []
        async with (
            feeds.follow(ID) as feed,
            aclosing(output.pieces(Log(ID, SEGMENT_BYTES, None), 0, feed)) as pieces,
        ):
            await asyncio.to_thread(supervisor.wait_asked, FollowLog)
            for size, lost in sizes:
                supervisor.tell(LogGrew(ID, size, output_ended=False, lost_bytes=lost))
                received.append(pb.StreamResponse.FromString((await anext(pieces)).message))
        return received

    one, two, three, four = follow(supervisor, step)
    assert (one.chunk.data, four.chunk.data) == (BYTES[:500], BYTES[600:700])
    assert [(gap.offset, gap.length) for gap in (two.gap, three.gap)] == [(500, 30), (530, 70)]


def test_many_followers_are_one_subscription(supervisor: LogSupervisor) -> None:
    supervisor.handlers[FollowLog] = lambda _: JobReply(
        record(1, segment_bytes=SEGMENT_BYTES, log_bytes=len(BYTES), output_ended=True)
    )

    async def step(output: Output, feeds: Feeds) -> Any:
        return await asyncio.gather(*(followed(output, feeds) for _ in range(20)))

    for messages in follow(supervisor, step):
        assert data_of(messages) == BYTES
    assert supervisor.asked(FollowLog) == 1


def test_the_last_follower_ends_the_subscription(supervisor: LogSupervisor) -> None:
    async def step(_output: Output, feeds: Feeds) -> None:
        async with feeds.follow(ID) as one:
            async with feeds.follow(ID) as other:
                assert one is other
                await asyncio.to_thread(supervisor.wait_asked, FollowLog)
            assert not supervisor.asked(UnfollowLog)
        await asyncio.to_thread(supervisor.wait_asked, UnfollowLog)

    follow(supervisor, step)


def test_a_follower_outlives_the_supervisor(supervisor: LogSupervisor) -> None:
    replies = iter([(600, False), (1500, False), (2500, True)])

    def reply(_request: Any) -> Any:
        size, ended = next(replies)
        return JobReply(record(1, segment_bytes=SEGMENT_BYTES, log_bytes=size, output_ended=ended))

    supervisor.handlers[FollowLog] = reply

    async def step(output: Output, feeds: Feeds) -> bytes:
        received = b""
        async with (
            feeds.follow(ID) as feed,
            aclosing(output.pieces(Log(ID, SEGMENT_BYTES, None), 0, feed)) as pieces,
        ):
            async for piece in pieces:
                received += pb.StreamResponse.FromString(piece.message).chunk.data
                if piece.stop in (600, 1500):
                    supervisor.drop()
        return received

    assert follow(supervisor, step) == BYTES


def test_a_follower_is_told_when_the_supervisor_stays_away(
    supervisor: LogSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "PATIENCE_SECONDS", 0.05)
    supervisor.handlers[FollowLog] = lambda _: None

    async def step(output: Output, feeds: Feeds) -> Any:
        return await followed(output, feeds)

    with pytest.raises(AgentUnavailable):
        follow(supervisor, step)


def test_a_follower_is_told_when_the_job_is_removed(supervisor: LogSupervisor) -> None:
    async def step(output: Output, feeds: Feeds) -> Any:
        following = asyncio.create_task(followed(output, feeds))
        await asyncio.to_thread(supervisor.connected.wait)
        supervisor.tell(JobRemoved(ID))
        return await following

    with pytest.raises(JobNotFound):
        follow(supervisor, step)


def test_a_job_that_is_not_there_cannot_be_followed(supervisor: LogSupervisor) -> None:
    def refuse(request: FollowLog) -> Any:
        raise JobNotFound(request.job_id)

    supervisor.handlers[FollowLog] = refuse

    async def step(output: Output, feeds: Feeds) -> Any:
        return await followed(output, feeds)

    with pytest.raises(JobNotFound):
        follow(supervisor, step)


def test_a_follower_may_wait_for_an_offset_that_is_not_there_yet(supervisor: LogSupervisor) -> None:
    async def step(output: Output, feeds: Feeds) -> list[Any]:
        following = asyncio.create_task(followed(output, feeds, offset=2000))
        await asyncio.to_thread(supervisor.connected.wait)
        for size, ended in ((1000, False), (2500, True)):
            supervisor.tell(LogGrew(ID, size, ended))
        return await following

    assert data_of(follow(supervisor, step)) == BYTES[2000:]


def test_but_not_beyond_the_end_of_all_output(supervisor: LogSupervisor) -> None:
    supervisor.handlers[FollowLog] = lambda _: JobReply(record(1, log_bytes=10, output_ended=True))

    async def step(output: Output, feeds: Feeds) -> Any:
        return await followed(output, feeds, offset=11)

    with pytest.raises(InvalidField):
        follow(supervisor, step)

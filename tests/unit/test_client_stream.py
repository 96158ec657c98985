"""Streams of output across broken connections: no gap, no repeat, and no endless trying."""

# ruff: noqa: S311 - seeded, so that what fails fails again

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterable, Iterator

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client import connect
from jobworker.client.failures import CallFailed
from jobworker.client.output import Chunk, End, Gap, Item, Lines
from jobworker.client.rpc import streams
from jobworker.client.rpc.backoff import Backoff
from jobworker.client.rpc.stream import Position, Resumption
from jobworker.errors import ProtocolError
from jobworker.jobs import OutputFormat, Source
from support import scripted

ID = "k7f3-9m2q-x4tz-b1cd"
# A busy machine is no failure.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
QUICK = Backoff(attempts=3, first=0.001, longest=0.002)


def data_of(items: Iterable[Item]) -> bytes:
    return b"".join(item.data for item in items if isinstance(item, Chunk))


class Log:
    """A job's output, served in pieces from any offset, each call ended by what `ends` says next."""

    def __init__(self, data: bytes, piece: int) -> None:
        self.data = data
        self._piece = piece

    def serve(self, offset: int) -> Iterator[pb.StreamResponse]:
        for start in range(offset, len(self.data), self._piece):
            yield scripted.chunk(start, self.data[start : start + self._piece])
        yield scripted.end(len(self.data))


def test_output_that_no_agent_gives() -> None:
    timed = scripted.chunk(0, b"x")
    timed.chunk.time.seconds = 10**12
    for response in (timed, scripted.chunk(2**64 - 1, b"x")):
        resumption = Resumption(Position(0, filtered=True), QUICK)
        with pytest.raises(ProtocolError):
            list(resumption.items(response))


def test_a_stream_is_resumed_wherever_the_agent_ends_it() -> None:
    log, chance = Log(random.Random(1).randbytes(300_000), 7_001), random.Random(2)

    def stream(request: pb.StreamRequest, context: grpc.ServicerContext) -> Iterator[pb.StreamResponse]:
        for response in itertools.islice(log.serve(request.offset), chance.randrange(1, 8)):
            yield response
            if response.WhichOneof("item") == "end":
                return
        scripted.fail(context, "UNAVAILABLE", "AGENT_UNAVAILABLE", "draining")

    with scripted.scripted_agent() as agent, connect(agent.endpoint()) as client:
        agent.handlers["Stream"] = stream
        items = list(client.stream(ID, follow=True))
        assert data_of(items) == log.data
        assert items[-1] == End(len(log.data), output_ended=True)
        assert not any(isinstance(item, Gap) for item in items)
        assert len(agent.requests) > 5
        assert all(request.follow and request.job_id == ID for request in agent.requests)


def test_a_stream_is_resumed_wherever_the_connection_breaks() -> None:
    log, chance = Log(random.Random(3).randbytes(1_500_000), 16_384), random.Random(4)
    budgets = (chance.randrange(30_000, 300_000) for _ in itertools.count())
    with scripted.scripted_agent() as agent, scripted.breaking_wire(agent.port, budgets) as wire:
        agent.handlers["Stream"] = lambda request, _context: log.serve(request.offset)
        with connect(agent.endpoint(wire.port)) as client:
            items = list(client.stream(ID))
        assert data_of(items) == log.data
        assert not any(isinstance(item, Gap) for item in items)
        assert wire.connections > 5


def resumed(open_at: Callable[[int], Iterable[pb.StreamResponse]], backoff: Backoff = QUICK) -> Iterator[Item]:
    """The items of a stream from the beginning on, opened at an offset each time."""
    position = Position(0, filtered=False)
    return streams.output(lambda: open_at(position.offset), Resumption(position, backoff))


def test_a_call_that_ends_without_an_end_is_resumed() -> None:
    log = Log(b"0123456789", 3)
    calls = [itertools.islice(log.serve(0), 2), log.serve(6)]
    items = list(resumed(lambda _offset: calls.pop(0)))
    assert data_of(items) == log.data


def test_a_stream_that_makes_no_progress_is_given_up() -> None:
    calls = []

    def open_at(offset: int) -> Iterator[pb.StreamResponse]:
        calls.append(offset)
        yield scripted.chunk(0, b"same again")
        raise CallFailed("UNAVAILABLE", f"break {len(calls)}")

    stream = resumed(open_at)
    assert next(stream) == Chunk(0, b"same again")
    with pytest.raises(CallFailed, match="break 4"):
        list(stream)
    assert calls == [0] + [10] * QUICK.attempts


def test_progress_resets_the_attempts() -> None:
    data = bytes(range(100))

    def open_at(offset: int) -> Iterator[pb.StreamResponse]:
        if offset < len(data):
            yield scripted.chunk(offset, data[offset : offset + 1])
            raise CallFailed("UNAVAILABLE", "again")
        yield scripted.end(len(data))

    items = list(resumed(open_at, Backoff(attempts=1, first=0.0001)))
    assert data_of(items) == data


@pytest.mark.parametrize("code", ["NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED", "DATA_LOSS", "CANCELLED"])
def test_what_another_attempt_cannot_mend_ends_the_stream(code: str) -> None:
    calls = []

    def open_at(offset: int) -> Iterator[pb.StreamResponse]:
        calls.append(offset)
        yield scripted.chunk(0, b"abc")
        raise CallFailed(code, "no")

    with pytest.raises(CallFailed, match="no"):
        list(resumed(open_at))
    assert calls == [0]


def test_what_the_agent_repeats_is_dropped() -> None:
    position = Position(0, filtered=False)
    given_out = [
        *position.accept(Chunk(0, b"0123", Source.STDOUT)),
        *position.accept(Chunk(2, b"2345", Source.STDERR)),
        *position.accept(Chunk(1, b"12")),
        *position.accept(Gap(4, 4, "expired")),
    ]
    assert given_out == [Chunk(0, b"0123", Source.STDOUT), Chunk(4, b"45", Source.STDERR), Gap(6, 2, "expired")]


def test_what_the_agent_leaves_out_is_a_gap() -> None:
    position = Position(10, filtered=False)
    items = [*position.accept(Chunk(15, b"x")), *position.accept(End(20, output_ended=True))]
    assert [type(item) for item in items] == [Gap, Chunk, Gap, End]
    assert (items[0].offset, items[2].offset) == (10, 16)
    assert [item.length for item in items if isinstance(item, Gap)] == [5, 4]


def test_what_the_other_source_wrote_is_no_gap() -> None:
    position = Position(0, filtered=True)
    items = [*position.accept(Chunk(15, b"x")), *position.accept(End(20, output_ended=True))]
    assert items == [Chunk(15, b"x"), End(20, output_ended=True)]
    assert position.offset == 20


def test_where_a_stream_begins_is_told_by_the_agent() -> None:
    position = Position(0, filtered=False, unknown=True)
    items = [*position.accept(Chunk(100, b"")), *position.accept(Chunk(105, b"x"))]
    assert items == [Gap(100, 5, "the agent left it out"), Chunk(105, b"x")]


def test_the_last_lines_are_asked_for_until_it_is_known_where_they_begin() -> None:
    responses = [[], [scripted.chunk(100, b"")], [scripted.chunk(100, b"ab")], [scripted.end(102)]]

    def stream(_request: pb.StreamRequest, context: grpc.ServicerContext) -> Iterator[pb.StreamResponse]:
        yield from responses.pop(0)
        if responses:
            scripted.fail(context, "UNAVAILABLE", "AGENT_UNAVAILABLE", "draining")

    with scripted.scripted_agent() as agent, connect(agent.endpoint()) as client:
        agent.handlers["Stream"] = stream
        items = list(client.stream(ID, tail_lines=5, since_ns=7, follow=True, timestamps=True))
        assert items == [Chunk(100, b"ab"), End(102, output_ended=True)]
        first = pb.StreamRequest(job_id=ID, tail_lines=5, since=Timestamp(nanos=7), follow=True, timestamps=True)
        later = [pb.StreamRequest(job_id=ID, offset=at, follow=True, timestamps=True) for at in (100, 102)]
        assert agent.requests == [first, first, *later]


def lines(offset: int, data: bytes, stop: int) -> pb.StreamResponse:
    return pb.StreamResponse(chunk=pb.OutputChunk(offset=offset, data=data, resume_offset=stop))


def test_lines_are_resumed_where_the_last_of_them_ended() -> None:
    # What they say is longer or shorter than what the job wrote.
    ended = pb.OutputEnd(offset=25, output_ended=True, data=b"rest\n")
    responses = {
        0: [lines(0, b"\\xff\\xfe\n", 3)],
        3: [lines(3, b"a\nb\n", 9), pb.StreamResponse(gap=pb.OutputGap(offset=12, length=8, data=b"cut\n"))],
        20: [lines(20, b"x", 21), pb.StreamResponse(end=ended)],
    }

    def stream(request: pb.StreamRequest, context: grpc.ServicerContext) -> Iterator[pb.StreamResponse]:
        yield from responses[request.offset]
        if request.offset < 20:
            scripted.fail(context, "UNAVAILABLE", "AGENT_UNAVAILABLE", "draining")

    with scripted.scripted_agent() as agent, connect(agent.endpoint()) as client:
        agent.handlers["Stream"] = stream
        items = list(client.stream(ID, follow=True, output_format=OutputFormat.TEXT))
        assert [request.format for request in agent.requests] == [pb.OUTPUT_FORMAT_TEXT] * 3
    assert items == [
        Lines(0, b"\\xff\\xfe\n", 3),
        Lines(3, b"a\nb\n", 9),
        Lines(9, b"cut\n", 12),
        Gap(12, 8, ""),
        Lines(20, b"x", 21),
        Lines(21, b"rest\n", 25),
        End(25, output_ended=True),
    ]


def test_what_is_cut_where_a_line_of_the_other_source_has_ended_is_not_lost() -> None:
    ended = pb.OutputEnd(offset=9, output_ended=True, data=b"rest\n")
    calls = [[lines(0, b"err\n", 9), pb.StreamResponse(end=ended)]]
    items = list(resumed(lambda _offset: calls.pop(0)))
    assert items == [Lines(0, b"err\n", 9), Lines(9, b"rest\n", 9), End(9, output_ended=True)]


def test_lines_that_are_told_again_or_left_out() -> None:
    position = Position(0, filtered=False)
    items = [*position.accept(Lines(0, b"a\n", 2)), *position.accept(Lines(0, b"a\n", 2))]
    assert items == [Lines(0, b"a\n", 2)]
    assert list(position.accept(Lines(5, b"b\n", 7))) == [Gap(2, 3, "the agent left it out"), Lines(5, b"b\n", 7)]


def test_a_client_asks_for_compression_by_metadata() -> None:
    asked: list[str | bytes | None] = []

    def stream(_request: pb.StreamRequest, context: grpc.ServicerContext) -> Iterator[pb.StreamResponse]:
        asked.append(dict(context.invocation_metadata()).get("jobworker-compression"))
        yield scripted.end(0)

    with scripted.scripted_agent() as agent, connect(agent.endpoint()) as client:
        agent.handlers["Stream"] = stream
        list(client.stream(ID))
        list(client.stream(ID, compress=True))
    assert asked == [None, "gzip"]


PIECES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=30)


@UNHURRIED
@given(data=st.binary(max_size=60), pieces=PIECES)
def test_whatever_is_sent_comes_out_in_order_and_once(data: bytes, pieces: list[tuple[int, int]]) -> None:
    position, next_offset = Position(0, filtered=False), 0
    for start, length in pieces:
        offset = min(start, len(data))
        for item in position.accept(Chunk(offset, data[offset : offset + length])):
            assert item.offset == next_offset
            assert not isinstance(item, End)
            next_offset = item.stop
            if isinstance(item, Chunk):
                assert item.data == data[item.offset : item.stop]
                assert item.data
    assert next_offset == position.offset


def test_gaps_sources_and_the_end_come_through() -> None:
    responses = [
        scripted.chunk(0, b"out", pb.OUTPUT_SOURCE_STDOUT),
        scripted.chunk(3, b"err", pb.OUTPUT_SOURCE_STDERR),
        pb.StreamResponse(gap=pb.OutputGap(offset=6, length=4, reason="expired")),
        pb.StreamResponse(),
        scripted.chunk(10, b"both"),
        scripted.end(14, output_ended=False),
    ]
    with scripted.scripted_agent() as agent, connect(agent.endpoint(name="reader")) as client:
        agent.handlers["Stream"] = lambda _request, _context: iter(responses)
        items = list(client.stream(ID, source=Source.STDERR))
        assert items == [
            Chunk(0, b"out", Source.STDOUT),
            Chunk(3, b"err", Source.STDERR),
            Gap(6, 4, "expired"),
            Chunk(10, b"both"),
            End(14, output_ended=False),
        ]
        (request,) = agent.requests
        assert request == pb.StreamRequest(job_id=ID, source=pb.OUTPUT_SOURCE_STDERR)


def test_leaving_a_stream_ends_the_call() -> None:
    with scripted.scripted_agent() as agent, connect(agent.endpoint()) as client:
        gone = threading.Event()

        def stream(_request: pb.StreamRequest, context: grpc.ServicerContext) -> Iterator[pb.StreamResponse]:
            context.add_callback(gone.set)
            yield scripted.chunk(0, b"first")
            assert gone.wait(60)

        agent.handlers["Stream"] = stream
        items = client.stream(ID, follow=True)
        assert next(items) == Chunk(0, b"first")
        items.close()
        assert gone.wait(60)


def test_pauses_grow_up_to_the_longest() -> None:
    pauses = list(Backoff(attempts=8, first=1, longest=5).pauses())
    ceilings = [1, 2, 4, 5, 5, 5, 5, 5]
    assert len(pauses) == 8
    assert all(top / 2 <= pause <= top for pause, top in zip(pauses, ceilings, strict=True))

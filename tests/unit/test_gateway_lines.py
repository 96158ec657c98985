"""Output as lines: the same wherever a reader begins and however the log grows, and no byte lost or told twice."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.gateway import line_pieces, lines
from jobworker.gateway.lines import Standing
from jobworker.gateway.pieces import Part, Piece
from jobworker.gateway.seek import Log
from jobworker.gateway.segments import Segment
from jobworker.jobs import OutputFormat, Source
from jobworker.wire.output_index import LOST
from support.logs import Write, memfd, segment, written

OUT, ERR = Source.STDOUT, Source.STDERR
CELL = 8
SPAN = lines.SPAN_CELLS * CELL

# Newlines often, characters of one to four bytes, and what is none.
PARTS = [b"\n", b"a", b"bc", "é".encode(), "€".encode(), "😀".encode(), b"\xff", b"\\"]
DATA = st.lists(st.sampled_from(PARTS), min_size=1).map(b"".join)
WRITES = st.lists(
    st.builds(Write, st.sampled_from([OUT, ERR]), DATA | st.binary(min_size=1, max_size=40)), max_size=12
)
# Open since the span before the one at which a reader who wants the end begins; it ends with a span, too.
LONG_OPEN = [Write(ERR, b"\n" * (SPAN - 1)), Write(OUT, b"a"), Write(ERR, b"\n"), Write(OUT, b"b")]
LONG_OPEN.append(Write(ERR, b"\n" * (2 * SPAN - 3) + b"x"))
LOSSY_WRITES = st.lists(st.builds(Write, st.sampled_from([OUT, OUT, ERR, ERR, LOST]), DATA), max_size=12)


@pytest.fixture(autouse=True, scope="module")
def _small_cells() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CELL", CELL)
        yield


def size_of(writes: Sequence[Write]) -> int:
    return sum(len(write.data) for write in writes)


def told(
    made: Segment,
    size: int,
    offset: int = 0,
    stops: Sequence[int] = (),
    *,
    form: OutputFormat = OutputFormat.JSON,
    source: Source | None = None,
    timed: bool = False,
) -> list[Any]:
    """The messages of a stream of a log that grows by these stops and ends then."""
    log, at = Log("", 1 << 40, source, timed, form), Standing.at(offset)
    pieces: list[Piece] = []
    for end in [*sorted(stop for stop in stops if stop > offset), size]:
        while at.read < end:
            step = line_pieces.step(made, Part(log, at.read, end, lossy=True), at)
            at = step.standing
            pieces += step.pieces
            assert sum(len(held.data) for _, held in at.open) <= 2 * 4 * CELL
    pieces.append(line_pieces.ending(log, at, output_ended=True))
    messages = [pb.StreamResponse.FromString(piece.message) for piece in pieces]
    return [getattr(message, str(message.WhichOneof("item"))) for message in messages]


def events(messages: Sequence[Any]) -> list[Any]:
    """The objects of these messages, and gaps as their missing offsets."""
    found: list[Any] = []
    for message in messages:
        found += [json.loads(line) for line in message.data.splitlines()]
        if isinstance(message, pb.OutputGap):
            found += range(message.offset, message.offset + message.length)
    return found


def objects(messages: Sequence[Any]) -> list[dict[str, Any]]:
    return [event for event in events(messages) if isinstance(event, dict)]


def content(told_line: dict[str, Any]) -> bytes:
    data = base64.b64decode(told_line["base64"]) if "base64" in told_line else told_line["text"].encode()
    return data if told_line.get("partial") else data + b"\n"


def decoded(messages: Sequence[Any], source: Source) -> bytes:
    return b"".join(content(line) for line in objects(messages) if line["source"] == source.name)


@given(writes=LOSSY_WRITES | WRITES)
def test_json_holds_all_bytes_of_each_source(writes: list[Write]) -> None:
    messages = told(segment(writes), size_of(writes))
    for source in Source:
        assert decoded(messages, source) == written(writes, source)


@given(writes=LOSSY_WRITES | WRITES, stops=st.lists(st.integers(0, 200)))
@pytest.mark.parametrize("form", [OutputFormat.TEXT, OutputFormat.JSON])
def test_it_is_the_same_however_the_log_grows(writes: list[Write], stops: list[int], form: OutputFormat) -> None:
    made, size = segment(writes), size_of(writes)
    whole = told(made, size, form=form)
    grown = told(made, size, 0, [stop for stop in stops if stop < size], form=form)
    joined = [b"".join(message.data for message in messages) for messages in (whole, grown)]
    assert joined[0] == joined[1]
    assert whole[-1] == grown[-1]


@given(writes=LOSSY_WRITES | WRITES, stops=st.lists(st.integers(0, 200)))
@example(writes=[Write(OUT, b"ab"), Write(ERR, b"err\n"), Write(LOST, b"xx"), Write(OUT, b"c\n")], stops=[])
@example(
    writes=[Write(OUT, b"a"), Write(ERR, b"xxxxxx\n"), Write(ERR, b"yyyyyyy\n"), Write(OUT, b"b\n")], stops=[]
)
@example(writes=[Write(OUT, b"no newline"), Write(ERR, b"err\n")], stops=[])
@pytest.mark.parametrize("source", [None, *Source])
def test_who_resumes_where_an_answer_ends_gets_the_same_rest(
    writes: list[Write], stops: list[int], source: Source | None
) -> None:
    made, size = segment(writes), size_of(writes)
    messages = told(made, size, 0, [stop for stop in stops if stop < size], source=source)
    for number, message in enumerate(messages[:-1], 1):
        gap = isinstance(message, pb.OutputGap)
        offset = message.offset + message.length if gap else message.resume_offset
        assert events(told(made, size, offset, source=source)) == events(messages[number:])


@given(writes=WRITES)
@pytest.mark.parametrize("source", [None, *Source])
def test_who_resumes_at_the_end_of_a_line_gets_those_that_end_later(
    writes: list[Write], source: Source | None
) -> None:
    made, size = segment(writes), size_of(writes)
    *chunks, end = told(made, size, source=source)
    for line in objects(chunks):
        later = [other for other in objects(chunks) if other["end"] > line["end"]]
        assert objects(told(made, size, line["end"], source=source)) == later + objects([end])


@given(writes=LOSSY_WRITES | WRITES)
@example(writes=[Write(OUT, b"hello\nwor")])
@example(writes=[Write(OUT, b"hello\nwor"), Write(ERR, b"x")])
@example(writes=[Write(OUT, b"wor"), Write(ERR, b"x\n")])
@example(writes=[Write(OUT, b"wor"), Write(LOST, b"??"), Write(OUT, b"x\n")])
@example(writes=LONG_OPEN)
@pytest.mark.parametrize("source", [None, *Source])
def test_who_resumes_at_the_end_of_the_last_line_that_was_cut_does_not_get_it_again(
    writes: list[Write], source: Source | None
) -> None:
    made, size = segment(writes), size_of(writes)
    messages = told(made, size, source=source)
    for number, message in enumerate(messages):
        cut, rest = objects([message]), events(messages[number:])
        if isinstance(message, pb.OutputChunk) or not cut:
            continue
        for line in cut[:-1]:
            assert events(told(made, size, line["end"], source=source)) == rest
        assert cut[-1]["end"] == message.offset
        # Where a line ends at the same offset it is unclear what was told: again is better than never.
        shared = any(line["end"] == message.offset for line in objects(messages[:number]))
        left = rest if shared else rest[len(cut) :]
        assert events(told(made, size, message.offset, source=source)) == left


@given(writes=LOSSY_WRITES | WRITES)
def test_answers_follow_one_another_and_lines_are_where_they_say(writes: list[Write]) -> None:
    made, size = segment(writes), size_of(writes)
    log = b"".join(write.data for write in writes)
    *messages, end = told(made, size)
    at = 0
    for message in messages:
        gap = isinstance(message, pb.OutputGap)
        # Before a gap stands what it cuts.
        assert message.offset == at or (gap and message.data and message.offset > at)
        at = message.offset + message.length if gap else message.resume_offset
    assert end.offset == size
    assert at == size or end.data
    for line in objects(messages):
        assert log[line["offset"]] == content(line)[0]
        assert line["time"] is not None
    ends = [line["end"] for line in objects([*messages, end])]
    assert all(one <= other for one, other in pairwise(ends))


@given(writes=WRITES)
def test_text_is_what_json_tells_for_the_eye(writes: list[Write]) -> None:
    made, size = segment(writes), size_of(writes)
    shown = b""
    *chunks, end = told(made, size)
    for line in objects([*chunks, end]):
        piece = line.get("partial") and line not in objects([end])
        text = content(line).removesuffix(b"\n").decode(errors="backslashreplace")
        shown += text.encode() + (b"\xe2\x80\xa6\n" if piece else b"\n")
    plain = told(made, size, form=OutputFormat.TEXT)
    assert b"".join(message.data for message in plain) == shown
    timed = b"".join(message.data for message in told(made, size, form=OutputFormat.TEXT, timed=True))
    stamps = [line["time"][:23] + "Z " for line in objects([*chunks, end])]
    lines_shown = shown.split(b"\n")[:-1]
    assert timed == b"".join(a.encode() + b + b"\n" for a, b in zip(stamps, lines_shown, strict=True))


@given(text=st.text(st.sampled_from("aé€😀\n")))
def test_a_long_line_is_cut_between_characters(text: str) -> None:
    writes = [Write(OUT, text.encode())]
    found = objects(told(segment(writes), size_of(writes)))
    assert all("text" in line for line in found)
    assert all(len(content(line)) <= 2 * CELL + 3 for line in found)


@given(before=st.integers(0, 3 * CELL), length=st.integers(0, CELL - 1), flood=st.integers(0, 5 * CELL))
def test_a_line_of_a_cell_or_less_is_not_cut(before: int, length: int, flood: int) -> None:
    line = b"x" * length + b"\n"
    writes = [Write(OUT, b"-" * before + b"\n"), Write(ERR, b"\n" * (flood + 1)), Write(OUT, line)]
    assert content(objects(told(segment(writes), size_of(writes)))[-1]) == line


@given(
    before=st.integers(0, 3 * CELL),
    cut=st.integers(1, CELL // 4),
    between=st.integers(1, SPAN - CELL // 4 - 1),
)
def test_a_short_line_that_waits_for_the_other_source_is_not_cut(before: int, cut: int, between: int) -> None:
    line = b"x" * (CELL // 4) + b"\n"
    writes = [Write(OUT, b"-" * before + b"\n"), Write(OUT, line[:cut]), Write(ERR, b"\n" * between)]
    writes.append(Write(OUT, line[cut:]))
    assert content(objects(told(segment(writes), size_of(writes)))[-1]) == line


def test_a_line_that_waits_for_long_is_cut() -> None:
    writes = [Write(OUT, b"ab"), Write(ERR, b"\n" * 2 * SPAN), Write(OUT, b"c\n")]
    found = objects(told(segment(writes), size_of(writes)))
    assert [content(each) for each in found if each["source"] == "STDOUT"] == [b"ab", b"c\n"]


def test_a_line_is_put_together_from_what_came_between_the_other_sources() -> None:
    writes = [Write(OUT, b"a"), Write(ERR, b"x\n"), Write(OUT, b"b\nc"), Write(ERR, b"y"), Write(OUT, b"d\n")]
    *chunks, end = told(segment(writes), size_of(writes))
    place = {"type": "line", "source": "STDOUT"}
    assert objects(chunks) == [
        {
            **place,
            "offset": 1,
            "end": 3,
            "source": "STDERR",
            "time": "1970-01-01T00:00:02.000000000Z",
            "text": "x",
        },
        {**place, "offset": 0, "end": 5, "time": "1970-01-01T00:00:03.000000000Z", "text": "ab"},
        {**place, "offset": 5, "end": 9, "time": "1970-01-01T00:00:05.000000000Z", "text": "cd"},
    ]
    assert [line["partial"] for line in objects([end])] == [True]
    text = told(segment(writes), size_of(writes), form=OutputFormat.TEXT)
    assert [message.data for message in text] == [b"x\nab\n", b"cd\n", b"y\n"]


def test_what_stands_before_a_gap_comes_with_it_and_is_not_joined_to_what_stands_behind() -> None:
    writes = [Write(OUT, b"a"), Write(LOST, b"?" * 40), Write(OUT, b"b\n")]
    gap, chunk, end = told(segment(writes), size_of(writes), form=OutputFormat.TEXT)
    assert (gap.offset, gap.length, gap.data) == (1, 40, b"a\xe2\x80\xa6\n")
    assert (chunk.offset, chunk.data, end.data) == (41, b"b\n", b"")


def test_a_stream_that_ends_before_the_output_leaves_the_open_line_to_a_later_one() -> None:
    made, at = segment([Write(OUT, b"one\ntw"), Write(OUT, b"o\n")]), Standing.at(0)
    log = Log("", 1000, None, format=OutputFormat.TEXT)
    at = line_pieces.step(made, Part(log, 0, 6, lossy=False), at).standing
    end = pb.StreamResponse.FromString(line_pieces.ending(log, at, output_ended=False).message).end
    assert end == pb.OutputEnd(offset=4)
    assert [message.data for message in told(made, 8, 4, form=OutputFormat.TEXT)] == [b"two\n", b""]


def test_many_lines_and_many_small_writes_are_told_in_bounded_steps() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CELL", 64 * 1024)
        for writes in ([Write(OUT, b"\n" * 20_000)], [Write(OUT, b"x\n"), Write(ERR, b"y\n")] * 2_000):
            messages = told(segment(writes), size_of(writes))
            counts = [len(message.data.splitlines()) for message in messages]
            assert max(counts) <= 2_000
            assert b"".join(content(line) for line in objects(messages)) == b"".join(w.data for w in writes)


def test_source_and_time_that_are_not_known_are_null() -> None:
    writes = [Write(OUT, b"a\n")]
    made = Segment(0, memfd(b"a\n"), memfd(b""))
    assert objects(told(made, size_of(writes))) == [
        {"type": "line", "offset": 0, "end": 2, "source": None, "time": None, "text": "a"}
    ]
    (chunk, _) = told(made, size_of(writes), form=OutputFormat.TEXT, timed=True)
    assert chunk.data == b"-                        a\n"

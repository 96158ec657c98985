"""Reading a segment through its descriptors, and its index for what one source wrote."""

from __future__ import annotations

import asyncio
import os
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.gateway import index as index_module
from jobworker.gateway.link import SupervisorLink
from jobworker.gateway.segments import OF_ONE_JOB, Segment, Segments
from jobworker.wire.messages import LogSegment, OpenLog
from jobworker.wire.output_index import LOST, RECORD
from support.logs import counted_reads
from support.scripted_supervisor import SILENCE, Answer, ScriptedSupervisor, job_id, linked

START = 5_000
MANY = 50_000


def a_file(data: bytes) -> int:
    fd = os.memfd_create("segment")
    os.write(fd, data)
    return fd


def segment(data: bytes, runs: list[tuple[int, int]], start: int = START) -> Segment:
    """A segment whose index has records of (length, source), written at times 1, 2, 3 and so on."""
    index, offset = b"", start
    for number, (length, source) in enumerate(runs, 1):
        index += RECORD.pack(offset, length, source, 0, number)
        offset += length
    return Segment(start, a_file(data), a_file(index))


def ranges(made: Segment, source: int, offset: int, end: int) -> list[int]:
    """Every offset that a source wrote, as a stream goes through them."""
    found: list[int] = []
    while offset < end:
        start, stop, *_ = made.index.run(offset, end, source)
        assert offset <= start <= stop <= end
        assert stop > offset, "no progress"
        found += range(start, stop)
        offset = stop
    return found


def test_reading_ends_with_the_segment() -> None:
    made = segment(b"0123456789", [])
    assert made.read(START + 3, 4) == b"3456"
    assert made.read(START + 8, 100) == b"89"
    assert made.read(START + 10, 100) == b""


def test_both_descriptors_end_with_the_object() -> None:
    before = os.listdir("/proc/self/fd")
    made = segment(b"x", [])
    assert len(os.listdir("/proc/self/fd")) == len(before) + 2
    del made
    assert os.listdir("/proc/self/fd") == before


RUNS = st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 2])), min_size=1, max_size=60)


@pytest.mark.parametrize("block", [2, 3, 1024])
@given(RUNS, st.data())
def test_a_source_gets_what_it_wrote(block: int, runs: list[tuple[int, int]], data: st.DataObject) -> None:
    wrote = [source for length, source in runs for _ in range(length)]
    offset = START + data.draw(st.integers(0, len(wrote)))
    end = data.draw(st.integers(offset, START + len(wrote)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_BLOCK", block)
        found = ranges(segment(b"", runs), 2, offset, end)
    assert found == [at for at in range(offset, end) if wrote[at - START] == 2]


def test_neighbouring_records_of_a_source_are_one_range() -> None:
    assert segment(b"", [(3, 1), (2, 1), (4, 2)]).index.run(START, START + 9, 1)[:2] == (START, START + 5)


def test_but_not_where_their_times_are_to_be_told() -> None:
    made = segment(b"", [(3, 1), (2, 1), (4, 2)])
    assert made.index.run(START + 1, START + 9, None, timed=True) == (START + 1, START + 3, 1, 1)
    assert made.index.run(START + 3, START + 9, None, timed=True) == (START + 3, START + 5, 1, 2)
    assert made.index.run(START + 3, START + 9, 2, timed=True) == (START + 5, START + 9, 2, 3)


def test_all_runs_are_those_one_after_the_other() -> None:
    made = segment(b"", [(2, 1 + number % 2) for number in range(1000)])
    runs = list(made.index.runs(START + 1, START + 1999, 2))
    assert [at for run in runs for at in range(run.start, run.stop)] == ranges(made, 2, START + 1, START + 1999)


def test_what_the_other_source_wrote_is_passed_over_with_few_reads() -> None:
    made = segment(b"", [(1, 2 if number == MANY - 1 else 1) for number in range(MANY)])
    with counted_reads() as reads:
        runs = list(made.index.runs(START, START + MANY, 2))
    assert runs[-1] == (START + MANY - 1, START + MANY, 2, MANY)
    # Each part of the index says that there is nothing in it.
    assert [run for run in runs if run.start < run.stop] == runs[-1:]
    assert len(runs) > 10
    assert len(reads) < 20 * len(runs) < 500


def test_the_first_record_that_is_not_before_a_time() -> None:
    made = segment(b"", [(3, 1), (2, 2), (4, 1)])
    assert [made.index.since(time) for time in range(5)] == [START, START, START + 3, START + 5, None]
    assert (made.index.begins_ns(), segment(b"", []).index.begins_ns()) == (1, None)


def test_the_last_record_may_have_grown_since() -> None:
    made = segment(b"", [(3, 1), (2, 2)])
    assert made.index.run(START, START + 50, 2)[:2] == (START + 3, START + 50)


GAPPY = st.lists(st.tuples(st.integers(1, 4), st.sampled_from([LOST, 1, 2])), min_size=1, max_size=60)


@pytest.mark.parametrize("source", [None, 1])
@pytest.mark.parametrize("block", [2, 1024])
@given(GAPPY)
def test_what_was_lost_is_told_and_never_served(
    source: int | None, block: int, runs: list[tuple[int, int]]
) -> None:
    made = segment(b"", runs)
    at, end = START, START + sum(length for length, _ in runs)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_BLOCK", block)
        while at < end:
            run = made.index.run(at, end, source)
            found.update(dict.fromkeys(range(run.start, run.stop), run.source == LOST))
            at = run.stop
    wrote = [writer for length, writer in runs for _ in range(length)]
    wanted = {1, LOST} if source else {1, 2, LOST}
    assert found == {at: writer == LOST for at, writer in enumerate(wrote, START) if writer in wanted}


def test_what_was_lost_is_as_long_as_its_record_says_and_may_grow() -> None:
    index = a_file(RECORD.pack(START, 3, 1, 0, 0) + RECORD.pack(START + 3, 2, LOST, 0, 0))
    made = Segment(START, a_file(b""), index)
    assert made.index.run(START + 3, START + 50, None) == (START + 3, START + 5, LOST, 0)
    assert made.index.run(START + 5, START + 50, None)[:2] == (START + 5, START + 50)
    assert made.index.run(START + 3, START + 50, 1)[:2] == (START + 3, START + 5)
    os.pwrite(index, RECORD.pack(START + 3, 20, LOST, 0, 0), RECORD.size)
    assert made.index.run(START + 3, START + 50, None)[:2] == (START + 3, START + 23)


@given(GAPPY, st.data())
def test_records_that_could_not_be_written_do_not_lead_astray(
    runs: list[tuple[int, int]], data: st.DataObject
) -> None:
    index, offset, wrote = b"", START, []
    for number, (length, source) in enumerate(runs):
        missing = number > 0 and data.draw(st.booleans())
        index += bytes(RECORD.size) if missing else RECORD.pack(offset, length, source, 0, number)
        wrote += [0 if missing else source] * length
        offset += length
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_BLOCK", 4)
        found = ranges(Segment(START, a_file(b""), a_file(index)), 2, START, offset)
    assert {at for at, source in enumerate(wrote, START) if source == 2} <= set(found)
    # What no record tells of may count as the one's before it, and never is anybody else's.
    assert not {at for at, source in enumerate(wrote, START) if source == 1} & set(found)


# Bytes that stdout and stderr wrote by turns; somebody has cut off the index while the second half was written.
CUT_OFF = b"".join(
    RECORD.pack(START + at, 1, 1 + at % 2, 0, at) if at < 10 or at >= MANY // 2 else bytes(RECORD.size)
    for at in range(MANY)
)


@pytest.mark.parametrize("left", [0, 10])
def test_in_an_index_that_was_cut_off_what_is_there_is_found_with_few_reads(
    left: int,
) -> None:
    made = Segment(START, a_file(b""), a_file(bytes(left * RECORD.size) + CUT_OFF[left * RECORD.size :]))
    for look in (
        lambda: made.index.run(START, START + MANY, 2),
        lambda: made.index.run(START + MANY // 2 - 1, START + MANY, 2),
        lambda: made.index.run(START + MANY - 10, START + MANY, 2),
        lambda: made.index.since(MANY // 2 + 10),
        made.index.begins_ns,
    ):
        with counted_reads() as reads:
            look()
        assert len(reads) < 100
        assert sum(reads) < 2 * MANY * RECORD.size


def test_of_an_index_that_was_cut_off_all_that_is_there_counts() -> None:
    made = Segment(START, a_file(b""), a_file(bytes(10 * RECORD.size) + CUT_OFF[10 * RECORD.size :]))
    assert ranges(made, 2, START, START + MANY) == list(range(START + MANY // 2 + 1, START + MANY, 2))
    assert made.index.begins_ns() == MANY // 2
    found = [made.index.since(time) for time in (0, MANY - 10, MANY)]
    assert found == [START + MANY // 2, START + MANY - 10, None]


def test_records_behind_some_that_were_cut_off_begin_where_they_say() -> None:
    made = Segment(START, a_file(b""), a_file(CUT_OFF))
    # What no record tells of counts as that of the one before.
    found = [1, 3, 5, 7, *range(9, MANY // 2), *range(MANY // 2 + 1, MANY, 2)]
    assert ranges(made, 2, START, START + MANY) == [START + at for at in found]


def test_an_index_may_be_cut_off_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    index = a_file(CUT_OFF[: 10 * RECORD.size])
    made = Segment(START, a_file(b""), index)
    real = os.fstat

    def cut_off(fd: int) -> os.stat_result:
        found = real(fd)
        os.truncate(index, 0)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", cut_off)
        assert made.index.run(START, START + 10, 2).stop == START + 10
        os.pwrite(index, CUT_OFF[: 10 * RECORD.size], 0)
        assert made.index.since(3) is None


def test_half_a_record_at_the_end_is_none() -> None:
    index = RECORD.pack(START, 3, 1, 0, 0) + RECORD.pack(START + 3, 1, 2, 0, 0)[:-1]
    assert Segment(START, a_file(b""), a_file(index)).index.run(START, START + 9, 1)[:2] == (START, START + 9)


def test_without_an_index_nobody_wrote_anything() -> None:
    assert segment(b"", []).index.run(START, START + 9, 1)[:2] == (START + 9, START + 9)


@given(st.binary(max_size=24 * 20))
def test_a_broken_index_is_got_through(index: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_BLOCK", 3)
        found = ranges(Segment(START, a_file(b""), a_file(index)), 1, START, START + 50)
    assert all(one < other for one, other in pairwise(found))


def test_of_one_job_few_are_open_which_may_be_removed_meanwhile(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(str(tmp_path))
    supervisor.handlers[OpenLog] = lambda request: Answer(
        LogSegment(request.job_id, request.segment, request.segment, 0), (a_file(b"x"), a_file(b""))
    )

    async def scenario(link: SupervisorLink) -> list[int]:
        segments, opened = Segments(link, 1000), []
        before = len(os.listdir("/proc/self/fd"))
        for number in range(3 * OF_ONE_JOB):
            await segments.get(job_id(1), number)
            # One that is read all the time stays.
            assert (await segments.get(job_id(1), 0)).read(0, 1) == b"x"
            opened.append(len(os.listdir("/proc/self/fd")) - before)
        await segments.get(job_id(2), 0)
        opened.append(len(os.listdir("/proc/self/fd")) - before)
        return opened

    # Two files each; what was opened last is a moment longer in going.
    assert max(linked(supervisor.path, scenario)) <= 2 * (OF_ONE_JOB + 3)
    supervisor.close()


def test_who_wants_what_another_one_gives_up_gets_it(tmp_path: Path) -> None:
    supervisor, asked = ScriptedSupervisor(str(tmp_path)), threading.Event()

    def answer(_request: OpenLog) -> object:
        if not asked.is_set():
            asked.set()
            return SILENCE
        return Answer(LogSegment(job_id(1), 0, 0, 0), (a_file(b"x"), a_file(b"")))

    supervisor.handlers[OpenLog] = answer

    async def scenario(link: SupervisorLink) -> bytes:
        segments = Segments(link, 8)
        first = asyncio.create_task(segments.get(job_id(1), 0))
        await asyncio.to_thread(asked.wait, 30)
        first.cancel()
        segments.forget(job_id(1))
        return (await segments.get(job_id(1), 0)).read(0, 1)

    assert linked(supervisor.path, scenario) == b"x"
    supervisor.close()

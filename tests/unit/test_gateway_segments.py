"""Reading a segment through its descriptors, and its index for what one source wrote."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.gateway import segments
from jobworker.gateway.segments import INDEX_RECORD, Segment

START = 5_000


def a_file(data: bytes) -> int:
    fd = os.memfd_create("segment")
    os.write(fd, data)
    return fd


def segment(data: bytes, runs: list[tuple[int, int]], start: int = START) -> Segment:
    """A segment whose index has records of (length, source)."""
    index, offset = b"", start
    for length, source in runs:
        index += INDEX_RECORD.pack(offset, length, source, 0)
        offset += length
    return Segment(start, a_file(data), a_file(index))


def ranges(made: Segment, source: int, offset: int, end: int) -> list[int]:
    """Every offset that a source wrote, as a stream goes through them."""
    found: list[int] = []
    while offset < end:
        start, stop = made.run(offset, end, source)
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
        patch.setattr(segments, "_INDEX_BLOCK", block)
        found = ranges(segment(b"", runs), 2, offset, end)
    assert found == [at for at in range(offset, end) if wrote[at - START] == 2]


def test_neighbouring_records_of_a_source_are_one_range() -> None:
    assert segment(b"", [(3, 1), (2, 1), (4, 2)]).run(START, START + 9, 1) == (START, START + 5)


def test_the_last_record_may_have_grown_since() -> None:
    made = segment(b"", [(3, 1), (2, 2)])
    assert made.run(START, START + 50, 2) == (START + 3, START + 50)


def test_half_a_record_at_the_end_is_none() -> None:
    index = INDEX_RECORD.pack(START, 3, 1, 0) + INDEX_RECORD.pack(START + 3, 1, 2, 0)[:-1]
    assert Segment(START, a_file(b""), a_file(index)).run(START, START + 9, 1) == (START, START + 9)


def test_without_an_index_nobody_wrote_anything() -> None:
    assert segment(b"", []).run(START, START + 9, 1) == (START + 9, START + 9)


@given(st.binary(max_size=24 * 20))
def test_a_broken_index_is_got_through(index: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_INDEX_BLOCK", 3)
        found = ranges(Segment(START, a_file(b""), a_file(index)), 1, START, START + 50)
    assert all(one < other for one, other in pairwise(found))

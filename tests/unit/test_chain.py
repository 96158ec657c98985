"""The form of a line, and times as text."""

from __future__ import annotations

import hashlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker import chain
from jobworker.chain import START, Head


def test_a_line_can_be_checked_with_what_every_host_has() -> None:
    line, head = chain.seal(START, b'"time":"now","event":"test"')
    content = b'{"seq":1,"time":"now","event":"test"'
    digest = hashlib.sha256(b"0" * 64 + content).hexdigest()
    assert line == content + b',"hash":"' + digest.encode() + b'"}\n'
    assert head == Head(1, digest)


def test_what_was_sealed_can_be_split() -> None:
    line, head = chain.seal(Head(41, "a" * 64), b'"x":1')
    split = chain.split(line[:-1])
    assert split == chain.Line(42, b'{"seq":42,"x":1', head.hash)
    assert chain.parse_head(str(head)) == head


@pytest.mark.parametrize("text", ["", "7", f"7:{'a' * 63}", f"7:{'A' * 64}", f"-7:{'a' * 64}", f" 7:{'a' * 64}"])
def test_what_is_no_head(text: str) -> None:
    assert chain.parse_head(text) is None


@given(st.integers(0, 253_402_300_800 * 10**9 - 1), st.integers(0, 253_402_300_800 * 10**9 - 1))
def test_times_compare_as_text_as_they_do_as_numbers(one: int, other: int) -> None:
    first, second = chain.stamp(one), chain.stamp(other)
    assert (first < second, first == second) == (one < other, one == other)
    assert one - 10**9 < chain.floor_ns(first) <= one


def test_what_is_no_time() -> None:
    assert chain.stamp(-1) == ""
    assert chain.stamp(time.time_ns()).endswith("Z")
    assert chain.stamp(10**30) == ""

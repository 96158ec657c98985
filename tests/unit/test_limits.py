"""Limits and the units they are written in: what is accepted, and what the refusals say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker import units
from jobworker.errors import InvalidField
from jobworker.limits import BY_NAME, KINDS, Kind, LimitProfile, LimitProfiles, Limits

QUANTITIES = [kind for kind in KINDS if kind.bounds]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("cpu", "50%", 500),
        ("cpu", "1%", 10),
        ("cpu", "250%", 2500),
        ("cpu", "12.5%", 125),
        ("cpu_weight", "300", 300),
        ("cpuset", "0-2,5", "0-2,5"),
        ("cpuset", "5,1,0,2", "0-2,5"),
        ("cpuset", "3-3,3,0-1,1-2", "0-3"),
        ("memory", "256M", 256 << 20),
        ("memory", "1G", 1 << 30),
        ("memory", "2048Ki", 2 << 20),
        ("memory", "2Mi", 2 << 20),
        ("memory", "1048576", 1 << 20),
        ("swap", "0", 0),
        ("pids", "64", 64),
        ("io_read", "10M/s", 10 << 20),
        ("io_write", "10M", 10 << 20),
        ("io_read_ops", "500", 500),
    ],
)
def test_what_limits_look_like(name: str, text: str, value: Any) -> None:
    kind = BY_NAME[name]
    assert kind.read(text, "x") == value
    assert kind.read(kind.show(value), "x") == value


_NEVER = ["", " ", "-1", "0x10", "NaN", "max", "max\n", "1e3", "1e9G", "50 %", "64MB", "\u0665\u0660%", "9" * 25]


@pytest.mark.parametrize("text", _NEVER)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_other_text_is_refused_with_an_example(kind: Kind, text: str) -> None:
    with pytest.raises(InvalidField) as caught:
        kind.read(text, f"limits.{kind.name}")
    assert caught.value.field == f"limits.{kind.name}"
    assert kind.read(caught.value.example, "x") is not None
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cpu", "50"),
        ("cpu", "0%"),
        ("cpu", "99999999%"),
        ("cpu", "0.9%"),
        ("cpu", f"{2**64}%"),
        ("cpu_weight", "0"),
        ("cpu_weight", "10001"),
        ("cpuset", "2-1"),
        ("cpuset", "0-"),
        ("cpuset", "0,,1"),
        ("cpuset", "0\n"),
        ("memory", "0"),
        ("memory", "64 M"),
        ("memory", str(2**64)),
        ("memory", "9" * 19 + "T"),
        ("pids", "0"),
        ("io_read", "10M/m"),
        ("io_write", "1"),
        ("io_read_ops", str(2**32)),
    ],
)
def test_so_are_quantities_of_another_form_or_out_of_bounds(name: str, text: str) -> None:
    with pytest.raises(InvalidField) as caught:
        BY_NAME[name].read(text, f"limits.{name}")
    assert BY_NAME[name].read(caught.value.example, "x") is not None


@given(st.sampled_from(QUANTITIES), st.data())
def test_a_value_survives_being_shown(kind: Kind, data: st.DataObject) -> None:
    assert kind.bounds
    value = data.draw(st.integers(*kind.bounds))
    assert kind.read(kind.show(value), "x") == value


@given(st.sets(st.integers(0, 300), min_size=1))
def test_so_does_a_list_of_cpus(cpus: set[int]) -> None:
    text = units.format_cpu_list(cpus)
    assert units.cpus_of(text, "x") == cpus
    assert units.parse_cpu_list(text, "x") == text


@given(st.text(max_size=40) | st.from_regex(r"[0-9KMG%/s.,-]{0,25}", fullmatch=True))
def test_no_text_makes_a_limit_out_of_bounds(text: str) -> None:
    for kind in QUANTITIES:
        try:
            value = kind.read(text, "x")
        except InvalidField:
            continue
        assert kind.bounds
        assert kind.bounds[0] <= value <= kind.bounds[1]


def test_a_long_list_of_cpus_is_bounded() -> None:
    assert len(units.cpus_of("0-9999", "x")) == units.MAX_CPUS + 1
    assert units.cpus_of("0,9000-9999,8192", "x") == {0, units.MAX_CPUS}
    # It is read by the loop that serves everybody.
    many = ",".join(["0-8191"] * 5_000)
    assert len(units.cpus_of(many, "x")) == units.MAX_CPUS
    with pytest.raises(InvalidField, match="is not a list of CPUs"):
        units.cpus_of(",".join(["0-8191"] * 10_000), "x")


def test_swap_needs_memory() -> None:
    with pytest.raises(InvalidField, match=r"limits\.swap: is nothing without limits\.memory"):
        Limits(swap_bytes=1 << 20).check()
    Limits(swap_bytes=1 << 20, memory_bytes=1 << 20).check()


def test_durations() -> None:
    assert [units.parse_duration(text, "grace") for text in ("500ms", "1.5s", "2m", "1h", "1d")] == [
        500,
        1500,
        120_000,
        3_600_000,
        86_400_000,
    ]
    for text in ("", "10", "s", "-1s", "1 s", "1.s", "1e3s"):
        with pytest.raises(InvalidField):
            units.parse_duration(text, "grace")


def test_limits_over_others() -> None:
    mine, base = Limits(cpu_millis=500), Limits(cpu_millis=100, memory_bytes=1 << 30, swap_bytes=1 << 20, pids=9)
    assert mine.over(base) == Limits(cpu_millis=500, memory_bytes=1 << 30, swap_bytes=1 << 20, pids=9)
    assert Limits().over(base) == base
    # Swap is what a job may have beyond the memory that it stands beside.
    assert Limits(memory_bytes=1 << 20).over(base) == Limits(cpu_millis=100, memory_bytes=1 << 20, pids=9)
    swap = Limits(swap_bytes=1).over(base)
    assert (swap.memory_bytes, swap.swap_bytes) == (1 << 30, 1)


def test_limits_one_by_one() -> None:
    limits = Limits(
        cpu_millis=500, memory_bytes=1 << 30, swap_bytes=0, io_read_ops=5, io_write_bps=1024, io_device="8:0"
    )
    assert list(limits.parts()) == [
        Limits(cpu_millis=500),
        Limits(memory_bytes=1 << 30, swap_bytes=0),
        Limits(io_write_bps=1024, io_device="8:0"),
        Limits(io_read_ops=5, io_device="8:0"),
    ]


def test_what_exceeds() -> None:
    assert BY_NAME["memory"].exceeds(2, 1)
    assert not BY_NAME["memory"].exceeds(1, 1)
    assert BY_NAME["cpuset"].exceeds("0-2", "0-1,5")
    assert not BY_NAME["cpuset"].exceeds("5,0", "0-1,5")


def test_a_profile_that_is_not_there() -> None:
    profiles = LimitProfiles((LimitProfile("small", Limits(pids=1)), LimitProfile("big", Limits(pids=9))))
    assert profiles.of("big") == Limits(pids=9)
    assert profiles.of("") == Limits()
    with pytest.raises(
        InvalidField, match="'huge' is not a profile of limits of this agent; there are small, big"
    ):
        profiles.of("huge")
    with pytest.raises(InvalidField, match="this agent has none"):
        LimitProfiles().of("huge")

"""Distributions of durations."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobworker import codec
from jobworker.histogram import NOTHING_YET, Distribution, Histogram

BOUNDS = (0.1, 1.0, 10.0)
DURATIONS = st.lists(st.floats(0, 1000), max_size=20)


def of(*durations: float, before: Distribution = NOTHING_YET) -> Distribution:
    histogram = Histogram(BOUNDS, before)
    for seconds in durations:
        histogram.add(seconds)
    return histogram.snapshot()


def test_a_bound_belongs_to_what_meets_it() -> None:
    assert of(0.0, 0.1, 0.2, 1.0, 9.0, 11.0) == Distribution((2, 2, 1, 1), 21.3)


@given(DURATIONS, DURATIONS)
def test_to_go_on_is_as_not_to_have_stopped(first: list[float], then: list[float]) -> None:
    assert of(*then, before=of(*first)) == of(*first, *then)


def test_what_has_other_bounds_is_left_out() -> None:
    assert of(0.5, before=Distribution((1, 2), 3.0)) == of(0.5)


@given(DURATIONS)
def test_it_goes_to_another_process_and_the_disk(durations: list[float]) -> None:
    taken = of(*durations)
    assert codec.loads(Distribution, codec.dumps(taken)) == taken

"""What one principal may have of the gateway, and how little of it is remembered."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from jobworker.budget import Budget
from jobworker.errors import CapExceeded, JobWorkerError, QuotaExceeded
from jobworker.gateway import access, quotas, server
from jobworker.gateway.quotas import Lane, Quotas, lane_of
from jobworker.settings.schema import MAX_CALLS, MAX_STREAMS, QuotaSettings

ANN, BOB = "spiffe://test/user/ann", "spiffe://test/user/bob"
JOBS = "/jobworker.api.v1.JobWorkerService"


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@contextlib.contextmanager
def held(kept: Quotas, principal: str, lane: Lane, number: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            stack.enter_context(kept.hold(principal, lane))
        yield


def refusal(kept: Quotas, principal: str, lane: Lane) -> JobWorkerError | None:
    try:
        with kept.hold(principal, lane):
            return None
    except JobWorkerError as error:
        return error


def test_calls_are_in_three_lanes() -> None:
    lanes = {method: lane_of(method, streaming=False) for method in access.NEEDED}
    urgent = {method.rpartition("/")[2] for method, lane in lanes.items() if lane is Lane.URGENT}
    assert urgent == {"Stop", "Signal", "Check", "List"}
    assert lanes[f"{JOBS}/List"] is Lane.CALLS
    assert lane_of(f"{JOBS}/Watch", streaming=True) is Lane.STREAMS
    assert access.NEEDED.keys() >= access.URGENT


@pytest.mark.parametrize(("lane", "quota", "retry_ms"), [(Lane.STREAMS, "streams", 0), (Lane.CALLS, "calls", 200)])
def test_one_who_has_too_many_is_refused_and_nobody_else(lane: Lane, quota: str, retry_ms: int) -> None:
    kept = Quotas(QuotaSettings(streams=3, calls=3))
    with held(kept, ANN, lane, 3):
        error = refusal(kept, ANN, lane)
        assert isinstance(error, QuotaExceeded)
        assert (error.quota, error.limit, error.present, error.retry_ms) == (quota, 3, 3, retry_ms)
        assert refusal(kept, BOB, lane) is None
        assert all(refusal(kept, ANN, other) is None for other in set(Lane) - {lane})
    assert refusal(kept, ANN, lane) is None
    assert not kept.under_way.total()


def test_what_fails_gives_its_place_back() -> None:
    kept = Quotas(QuotaSettings(streams=1))
    for _ in range(5):
        with pytest.raises(KeyError), kept.hold(ANN, Lane.STREAMS):
            raise KeyError
    assert not kept.under_way.total()


@pytest.mark.parametrize(
    ("lane", "total", "each"), [(Lane.CALLS, MAX_CALLS, 256), (Lane.STREAMS, MAX_STREAMS, 1500)]
)
def test_all_together_have_a_bound(lane: Lane, total: int, each: int) -> None:
    kept = Quotas(QuotaSettings(calls_per_second=0))
    with contextlib.ExitStack() as stack:
        for number in range(total):
            stack.enter_context(kept.hold(f"{ANN}{number // each}", lane))
        assert isinstance(refusal(kept, BOB, lane), CapExceeded)
        assert all(refusal(kept, BOB, other) is None for other in set(Lane) - {lane})


def test_grpc_itself_refuses_later_than_the_lanes() -> None:
    """At its own bound it knows no lanes."""
    assert quotas.MAX_UNDER_WAY + quotas.MAX_HELD_BACK < server._MAX_CALLS


def test_calls_come_at_a_pace(clock: Clock) -> None:
    kept = Quotas(QuotaSettings(calls_per_second=10, calls_burst=20), clock)
    refused = [refusal(kept, ANN, Lane.CALLS) for _ in range(23)]
    assert refused[:20] == [None] * 20
    for number, error in enumerate(refused[20:]):
        assert isinstance(error, QuotaExceeded)
        assert (error.quota, error.limit, error.present) == ("calls_per_second", 10, 20 + number)
        assert error.retry_ms == 100
    assert refusal(kept, BOB, Lane.CALLS) is None
    clock.seconds += 0.1
    assert refusal(kept, ANN, Lane.CALLS) is None
    assert refusal(kept, ANN, Lane.CALLS) is not None
    clock.seconds += 3600
    assert [refusal(kept, ANN, Lane.CALLS) for _ in range(21)].count(None) == 20


def test_streams_and_calls_share_a_pace_and_urgent_calls_have_another(clock: Clock) -> None:
    kept = Quotas(QuotaSettings(calls_per_second=2, calls_burst=2), clock)
    assert refusal(kept, ANN, Lane.CALLS) is None
    assert refusal(kept, ANN, Lane.STREAMS) is None
    assert refusal(kept, ANN, Lane.STREAMS) is not None
    assert [refusal(kept, ANN, Lane.URGENT) for _ in range(2)] == [None, None]
    error = refusal(kept, ANN, Lane.URGENT)
    assert isinstance(error, QuotaExceeded)
    assert error.quota == "urgent_calls_per_second"


def test_what_is_refused_for_its_number_is_not_counted_twice(clock: Clock) -> None:
    kept = Quotas(QuotaSettings(calls=1, calls_per_second=2, calls_burst=2), clock)
    with kept.hold(ANN, Lane.CALLS):
        for _ in range(10):
            error = refusal(kept, ANN, Lane.CALLS)
            assert isinstance(error, QuotaExceeded)
            assert error.quota == "calls"
    assert [refusal(kept, ANN, Lane.CALLS) for _ in range(2)].count(None) == 1


def test_without_a_pace_any_number_may_come(clock: Clock) -> None:
    kept = Quotas(QuotaSettings(calls_per_second=0), clock)
    assert [refusal(kept, ANN, Lane.CALLS) for _ in range(20_000)].count(None) == 20_000


def test_who_asks_again_at_once_is_refused_later_and_later(clock: Clock) -> None:
    kept = Quotas(QuotaSettings(), clock)
    with contextlib.ExitStack() as held:
        waits = [held.enter_context(kept.hold_back(ANN)) for _ in range(1_024)]
        assert waits[:50] == [0.0] * 50
        assert waits[50:53] == [pytest.approx(0.05), pytest.approx(0.1), pytest.approx(0.15)]
        # No later than this, and no more than so many.
        assert (sorted(waits), waits[-1]) == (waits, 20.0)
        assert held.enter_context(kept.hold_back(ANN)) == 0.0
        assert held.enter_context(kept.hold_back(BOB)) == 0.0
        assert kept.held_back == 1_025
        clock.seconds += 3600
    assert kept.held_back == 0
    with kept.hold_back(ANN) as seconds:
        assert seconds == 0.0


def test_no_refusal_waits_longer_than_this(clock: Clock) -> None:
    kept = Quotas(QuotaSettings(), clock)
    waits = []
    for _ in range(1_000):
        with kept.hold_back(ANN) as seconds:
            waits.append(seconds)
    assert max(waits) == waits[-1] == 20.0


def test_refusals_of_all_together_that_wait_are_bounded(clock: Clock) -> None:
    kept = Quotas(QuotaSettings(), clock)
    with contextlib.ExitStack() as held:
        for number in range(5_000):
            held.enter_context(kept.hold_back(f"{ANN}{number // 500}"))
        assert kept.held_back == quotas.MAX_HELD_BACK
        assert held.enter_context(kept.hold_back(BOB)) == 0.0


def test_few_refusals_are_told_and_all_are_counted(clock: Clock) -> None:
    kept = Quotas(QuotaSettings(), clock)
    error = QuotaExceeded("calls", 1, 1, 200)
    told = [kept.tell(ANN, error) for _ in range(1_000)]
    assert told == [0] * 5 + [None] * 995
    assert kept.tell(BOB, CapExceeded("calls", 1, 1)) == 0
    clock.seconds += 5
    assert [kept.tell(ANN, error) for _ in range(2)] == [995, None]
    assert kept.refused == {"calls": 1_002, "agent": 1}


def test_the_number_of_principals_that_are_remembered_is_bounded() -> None:
    kept = Quotas(QuotaSettings())
    with kept.hold(BOB, Lane.STREAMS):
        for number in range(10_000):
            assert refusal(kept, f"{ANN}{number}", Lane.CALLS) is None
            assert len(kept._accounts) <= quotas._MAX_ACCOUNTS
        assert BOB in kept._accounts
        assert f"{ANN}9999" in kept._accounts
    assert f"{ANN}0" not in kept._accounts
    assert not kept.under_way.total()


@pytest.mark.parametrize("quota", ["streams", "calls", "urgent_calls", "calls_per_second", "active_jobs"])
@pytest.mark.parametrize(("retry_ms", "advice"), [(0, "end some of them first"), (1500, "try again in 1.5 s")])
def test_a_refusal_says_how_much_of_what_and_what_to_do(quota: str, retry_ms: int, advice: str) -> None:
    text = str(QuotaExceeded(quota, 12, 34, retry_ms))
    assert text.startswith("you have 34 ")
    assert text.endswith(f"one principal may have 12 on this agent; {advice}")
    assert quota == "streams" or "_" not in text


def test_a_budget_says_when_there_is_more(clock: Clock) -> None:
    budget = Budget(rate=4, burst=1, now=clock)
    assert budget.wait == 0
    assert budget.take()
    assert budget.wait == 0.25
    clock.seconds += 0.25
    assert budget.wait == 0


def test_further_messages_wait_and_are_never_refused(clock: Clock) -> None:
    kept = Quotas(QuotaSettings(), clock)
    while not (delay := kept.delay(ANN)):
        pass
    assert 0 < delay <= 1 / 2_000
    assert kept.delay(BOB) == 0
    clock.seconds += 2.5 / 2_000
    assert [kept.delay(ANN) > 0 for _ in range(3)] == [False, False, True]

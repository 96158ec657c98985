"""The supervisor's loop: timers near and far."""

from __future__ import annotations

import pytest

from jobworker.supervisor.loop import Loop


@pytest.fixture
def loop() -> Loop:
    return Loop()


def test_a_timer_may_be_further_away_than_epoll_can_count(loop: Loop) -> None:
    loop.call_after(366 * 86_400, lambda: pytest.fail("a year has not passed"))
    loop.call_after(0.001, loop.stop)
    loop.run()
    # The far one is the next: what the loop would wait for must be something that epoll takes.
    loop.call_after(0, loop.stop).cancel()
    assert 0 <= loop._timeout() * 1000 < 2**31


def test_timers_fire_in_the_order_of_their_deadlines(loop: Loop) -> None:
    fired: list[int] = []
    loop.call_after(0.1, lambda: fired.append(2))
    loop.call_after(0.01, lambda: fired.append(1))
    cancelled = loop.call_after(0.01, lambda: fired.append(0))
    cancelled.cancel()
    loop.call_after(0.2, loop.stop)
    loop.run()
    assert fired == [1, 2]


def test_cancelled_timers_are_not_kept(loop: Loop) -> None:
    for _ in range(10_000):
        loop.call_after(3600, lambda: None).cancel()
    assert len(loop._timers) < 5_000


def test_a_cancelled_timer_wakes_nobody(loop: Loop) -> None:
    rounds: list[None] = []
    loop.after_each_round(lambda: rounds.append(None))
    for seconds in (0.01, 0.02, 0.03):
        loop.call_after(seconds, lambda: None).cancel()
    loop.call_after(0.1, loop.stop)
    loop.run()
    assert len(rounds) == 1

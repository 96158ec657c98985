"""Faults in single system calls of the supervisor: a sample of them, or all with JOBWORKER_FAULTS=all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from support.root_side import fresh_root_side
from support.strace import needs_strace
from system.faults import calls
from system.faults.calls import Action, Bench, Exit, Start, Stop

pytestmark = [pytest.mark.root, needs_strace]

_ALL = os.environ.get("JOBWORKER_FAULTS") == "all"
_COUNT = 0 if _ALL else 16
_ACTIONS = pytest.mark.parametrize("action", [Start, Exit, Stop])


@pytest.fixture
def bench() -> Iterator[Bench]:
    with fresh_root_side(segment_bytes=calls.SEGMENT_BYTES) as running:
        yield Bench(running)


@_ACTIONS
def test_a_death_before_any_call(bench: Bench, action: Callable[[Bench], Action]) -> None:
    made = calls.sample(bench.record(action), _COUNT)
    for call in made:
        print(f"killed before {call}")
        bench.kill(action, call)
    # Were they missed, nothing would have been tested.
    assert bench.restarts > len(made) // 2


def test_no_process_is_lost_that_could_not_be_watched(bench: Bench) -> None:
    made = [each for each in calls.failures(bench.record(Start)) if each[0].name == "epoll_ctl"]
    assert len(made) > len(calls.ERRORS["epoll_ctl"])
    for call, error in made:
        print(f"{error} from {call}")
        bench.fail(Start, call, error)


@_ACTIONS
def test_a_failure_of_any_call(bench: Bench, action: Callable[[Bench], Action]) -> None:
    made = calls.failures(bench.record(action))
    for call, error in calls.sample(list(made), _COUNT):
        print(f"{error} from {call}")
        bench.fail(action, call, error)

"""Many visits at once: how many, how many failures, and what is told of them."""

from __future__ import annotations

import threading

import pytest

from jobworker.cli.fleet.fanout import Budget, Fanout, read_budget
from jobworker.cli.fleet.outcome import Outcome, Status, exit_code, of_error, summary
from jobworker.cli.fleet.targets import Target
from jobworker.client import Endpoint
from jobworker.client.failures import AmbiguousId, CallFailed, NothingMatches, WaitTimedOut
from jobworker.errors import InvalidField, JobNotFound, JobWorkerError, TlsProblem

TARGETS = [Target(f"web{number}", Endpoint("127.0.0.1:1", "", "", "")) for number in range(10)]


def fails(target: Target) -> Outcome:
    return Outcome(target.name, Status.FAILED, "EXITED 1")


def test_all_hosts_are_visited_and_so_many_at_once() -> None:
    gate = threading.Barrier(5)

    def visit(target: Target) -> Outcome:
        # Five have to be there at the same time, or nobody gets through.
        gate.wait(60)
        return Outcome(target.name, Status.OK)

    fanout = Fanout(TARGETS, None)
    seen = [outcome.host for outcome in fanout.run(visit, 5)]
    assert sorted(seen) == [target.name for target in TARGETS]
    assert fanout.rest() == []


@pytest.mark.parametrize(("text", "begun"), [("0", 1), ("3", 4), ("10%", 2), ("0%", 1), ("100%", 10)])
def test_no_host_is_begun_when_the_budget_is_exceeded(text: str, begun: int) -> None:
    fanout = Fanout(TARGETS, read_budget(text, "--max-fail"))
    assert len(list(fanout.run(fails, 1))) == begun
    assert [outcome.host for outcome in fanout.rest()] == [f"web{n}" for n in range(begun, 10)]
    assert {outcome.status for outcome in fanout.rest()} <= {Status.NOT_BEGUN}


@pytest.mark.parametrize("text", ["", "-1", "x", "101%", "1.5%", "3 %"])
def test_a_budget_is_a_number_or_a_percentage(text: str) -> None:
    with pytest.raises(InvalidField, match="neither a number of hosts nor a percentage"):
        read_budget(text, "--max-fail")
    assert read_budget("7%", "--max-fail") == Budget(7, percent=True)


def test_who_leaves_early_knows_what_is_open() -> None:
    reached, go_on = threading.Semaphore(0), threading.Event()

    def visit(target: Target) -> Outcome:
        if target.name != "web0":
            reached.release()
            assert go_on.wait(60)
        return Outcome(target.name, Status.OK)

    fanout = Fanout(TARGETS, None)
    assert next(fanout.run(visit, 2)).host == "web0"
    assert reached.acquire(timeout=60)
    assert reached.acquire(timeout=60)
    kinds = {outcome.host: outcome.status for outcome in fanout.rest()}
    go_on.set()
    assert [host for host, status in kinds.items() if status is Status.LEFT] == ["web1", "web2"]
    assert [host for host, status in kinds.items() if status is Status.NOT_BEGUN] == [
        f"web{n}" for n in range(3, 10)
    ]


def test_a_closed_one_begins_no_host() -> None:
    fanout = Fanout(TARGETS, None)
    fanout.close()
    assert list(fanout.run(fails, 4)) == []
    assert len(fanout.rest()) == 10


def test_a_visit_that_goes_wrong_in_no_known_way_is_a_failure_of_its_host() -> None:
    def visit(target: Target) -> Outcome:
        if target.name == "web3":
            raise RuntimeError("can't start new thread")
        return Outcome(target.name, Status.OK)

    fanout = Fanout(TARGETS, None)
    found = {outcome.host: outcome for outcome in fanout.run(visit, 1)}
    assert found.keys() == {target.name for target in TARGETS}
    assert found["web3"] == Outcome("web3", Status.FAILED, "RuntimeError", "can't start new thread")
    assert fanout.rest() == []


def test_an_output_that_fails_ends_it() -> None:
    def visit(_target: Target) -> Outcome:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        list(Fanout(TARGETS, None).run(visit, 2))


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (TlsProblem("nobody listens", "start it"), Status.UNREACHABLE, ""),
        (CallFailed("UNAVAILABLE", "cannot reach"), Status.UNREACHABLE, ""),
        (CallFailed("DEADLINE_EXCEEDED", "no answer"), Status.UNREACHABLE, ""),
        (CallFailed("UNAVAILABLE", "draining", "AGENT_DRAINING"), Status.FAILED, "AGENT_DRAINING"),
        (CallFailed("PERMISSION_DENIED", "no"), Status.FAILED, "PERMISSION_DENIED"),
        (JobNotFound("k7f3"), Status.WITHOUT, ""),
        (NothingMatches({"a": "b"}), Status.WITHOUT, ""),
        (CallFailed("NOT_FOUND", "no job", "JOB_NOT_FOUND"), Status.WITHOUT, ""),
        (AmbiguousId("k7f3", ()), Status.FAILED, "AmbiguousId"),
        (WaitTimedOut(("k7f3",)), Status.FAILED, "WaitTimedOut"),
    ],
)
def test_errors_are_outcomes(error: JobWorkerError, status: Status, reason: str) -> None:
    outcome = of_error("web1", error)
    assert (outcome.status, outcome.reason, outcome.detail) == (status, reason, str(error))


def outcomes(**counts: int) -> list[Outcome]:
    return [Outcome(f"{name}{n}", Status[name]) for name, count in counts.items() for n in range(count)]


def test_the_summary_counts_and_names() -> None:
    failed = [Outcome("web7", Status.FAILED, "EXITED 3"), Outcome("web8", Status.FAILED, "AGENT_DRAINING")]
    lines = list(summary([*failed, *outcomes(OK=12, UNREACHABLE=13, NOT_BEGUN=1)]))
    assert lines == [
        "28 hosts: 12 ok, 2 failed, 13 unreachable, 1 not begun",
        "  failed, AGENT_DRAINING: web8",
        "  failed, EXITED 3: web7",
        f"  unreachable: {' '.join(f'UNREACHABLE{n}' for n in range(10))} and 3 more",
        "  not begun: NOT_BEGUN0",
    ]


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        ({"OK": 2}, 0),
        ({"OK": 1, "WITHOUT": 3}, 0),
        ({"WITHOUT": 3}, 1),
        ({"OK": 1, "FAILED": 1, "UNREACHABLE": 1}, 1),
        ({"OK": 1, "UNREACHABLE": 1, "NOT_BEGUN": 1}, 3),
        ({"OK": 1, "LEFT": 1}, 1),
        ({"NOT_BEGUN": 1}, 1),
    ],
)
def test_exit_codes(counts: dict[str, int], code: int) -> None:
    assert exit_code(outcomes(**counts), interrupted=False) == code
    assert exit_code(outcomes(**counts), interrupted=True) == 130

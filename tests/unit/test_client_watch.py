"""Watches and waits of the client against a real server that breaks them off."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import grpc
import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client.changes import Changed, Event, Mark, Removed, Restarted
from jobworker.client.failures import CallFailed, WaitTimedOut
from jobworker.client.rpc import streams, watch
from jobworker.client.rpc.backoff import Backoff
from jobworker.client.rpc.client import Client
from jobworker.errors import JobNotFound
from jobworker.jobs import State
from support import scripted

A, B, C = (f"k7f3-9m2q-x4tz-b1c{letter}" for letter in "abc")
RUNNING, ENDED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_ENDED
Answers = Callable[[pb.WatchRequest, grpc.ServicerContext], Iterator[pb.WatchResponse]]


def changed(job_id: str, token: str = "", state: Any = RUNNING, **fields: Any) -> pb.WatchResponse:
    return pb.WatchResponse(job=job_pb2.Job(id=job_id, state=state, **fields), resume_token=token)


def removed(job_id: str, token: str) -> pb.WatchResponse:
    return pb.WatchResponse(removed_job_id=job_id, resume_token=token)


def mark(token: str, *, snapshot: bool = False) -> pb.WatchResponse:
    return pb.WatchResponse(mark=pb.WatchMark(snapshot_complete=snapshot), resume_token=token)


def answering(agent: scripted.ScriptedAgent, *calls: Sequence[pb.WatchResponse | tuple[str, str]]) -> None:
    """The nth watch gets the nth answers, with an error behind them if it is named there; else it stays open."""
    scripts = iter(calls)

    def watch(_request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchResponse]:
        for step in next(scripts):
            if isinstance(step, tuple):
                scripted.fail(context, *step, "it broke")
            yield step
        left = threading.Event()
        context.add_callback(left.set)
        left.wait(60)

    agent.handlers["Watch"] = watch


BROKEN, EXPIRED = ("UNAVAILABLE", "AGENT_UNAVAILABLE"), ("FAILED_PRECONDITION", "WATCH_EXPIRED")


def take(events: Iterator[Event], count: int) -> list[Any]:
    """So many events, jobs as their ids."""
    return [event.job.id if isinstance(event, Changed) else event for event in islice(events, count)]


def asked(agent: scripted.ScriptedAgent) -> list[tuple[str, bool]]:
    return [(request.resume_token, request.snapshot) for request in agent.requests]


def test_what_to_watch_is_sent(agent: scripted.ScriptedAgent, client: Client) -> None:
    answering(agent, [mark("t1")])
    events = client.watch(
        job_ids=[A], states=[State.ENDED], labels={"team": "build"}, principal="spiffe://x/user/y", snapshot=True
    )
    assert take(events, 1) == [Mark("t1", snapshot_complete=False)]
    (request,) = agent.requests
    assert (list(request.job_ids), list(request.states), dict(request.labels)) == ([A], [ENDED], {"team": "build"})
    assert (request.principal, request.snapshot, request.resume_token) == ("spiffe://x/user/y", True, "")


def test_a_watch_that_breaks_goes_on_behind_the_last_event(agent: scripted.ScriptedAgent, client: Client) -> None:
    answering(
        agent,
        [mark("t1"), changed(A, "t2"), BROKEN],
        [BROKEN],
        [changed(B, "t3"), removed(A, "t4"), BROKEN],
        [changed(C, "t5")],
    )
    assert take(client.watch(), 5) == [Mark("t1", snapshot_complete=False), A, B, Removed(A, "t4"), C]
    assert asked(agent) == [("", False), ("t2", False), ("t2", False), ("t4", False)]


def test_what_the_agent_does_not_know_any_more_is_said_and_a_snapshot_follows(
    agent: scripted.ScriptedAgent, client: Client
) -> None:
    answering(
        agent,
        [mark("t1"), BROKEN],
        [EXPIRED],
        [changed(A), mark("t9", snapshot=True), BROKEN],
        [changed(B, "t10")],
    )
    assert take(client.watch(), 5) == [
        Mark("t1", snapshot_complete=False),
        Restarted("it broke"),
        A,
        Mark("t9", snapshot_complete=True),
        B,
    ]
    assert asked(agent) == [("", False), ("t1", False), ("", True), ("t9", False)]


def test_a_snapshot_that_breaks_is_begun_anew(agent: scripted.ScriptedAgent, client: Client) -> None:
    answering(agent, [changed(A), BROKEN], [changed(B), mark("t1", snapshot=True)])
    events = take(client.watch(snapshot=True), 4)
    assert (events[0], type(events[1]), events[2:]) == (A, Restarted, [B, Mark("t1", snapshot_complete=True)])
    assert asked(agent) == [("", True), ("", True)]


def test_a_token_of_ones_own_that_is_too_old_is_an_error(agent: scripted.ScriptedAgent, client: Client) -> None:
    answering(agent, [EXPIRED])
    with pytest.raises(CallFailed) as caught:
        next(client.watch(resume_token="old"))
    assert caught.value.reason == "WATCH_EXPIRED"
    assert asked(agent) == [("old", False)]


def test_a_refusal_ends_a_watch(agent: scripted.ScriptedAgent, client: Client) -> None:
    answering(agent, [mark("t1"), ("UNAUTHENTICATED", "UNAUTHENTICATED")])
    events = client.watch()
    next(events)
    with pytest.raises(CallFailed, match="it broke"):
        next(events)


def test_waiting_for_jobs_gets_them_as_they_end(agent: scripted.ScriptedAgent, client: Client) -> None:
    answering(
        agent,
        [changed(A), changed(B, state=ENDED, exit_code=3), changed(C), mark("t1", snapshot=True), BROKEN],
        [changed(C, "t2", ENDED), changed(C, "t3", ENDED), changed(A, "t4", ENDED)],
    )
    assert [job.id for job in client.wait([A, B, C, A])] == [B, C, A]
    assert list(agent.requests[0].job_ids) == [A, B, C]


def test_waiting_for_the_first(agent: scripted.ScriptedAgent, client: Client) -> None:
    answering(agent, [changed(A), changed(B), mark("t1", snapshot=True), changed(B, "t2", ENDED)])
    assert [job.id for job in client.wait([A, B], first=True)] == [B]


def test_more_than_a_watch_may_name_are_waited_for_among_all(
    agent: scripted.ScriptedAgent, client: Client
) -> None:
    ids = [f"k7f3-9m2q-x4tz-{number:04d}" for number in range(201)]
    there = [changed(A, state=ENDED), *(changed(job_id, state=ENDED) for job_id in ids[1:]), changed(ids[0])]
    answering(agent, [*there, mark("t1", snapshot=True), changed(A, "t2"), changed(ids[0], "t3", ENDED)])
    assert [job.id for job in client.wait(ids)] == [*ids[1:], ids[0]]
    assert list(agent.requests[0].job_ids) == []


def test_waiting_for_nothing_is_done(agent: scripted.ScriptedAgent, client: Client) -> None:
    assert client.wait([]) == []
    assert not agent.requests


@pytest.mark.parametrize(
    "answers",
    [
        [changed(A), mark("t1", snapshot=True)],
        [changed(A), changed(B), mark("t1", snapshot=True), removed(B, "t2")],
    ],
)
def test_waiting_for_a_job_that_is_not_there(
    agent: scripted.ScriptedAgent, client: Client, answers: list[Any]
) -> None:
    answering(agent, answers)
    with pytest.raises(JobNotFound, match=B):
        client.wait([A, B])


def test_a_job_that_is_removed_behind_its_end_was_waited_for(
    agent: scripted.ScriptedAgent, client: Client
) -> None:
    answering(
        agent,
        [
            changed(A),
            changed(B, state=ENDED),
            mark("t1", snapshot=True),
            removed(B, "t2"),
            changed(A, "t3", ENDED),
        ],
    )
    assert [job.id for job in client.wait([A, B])] == [B, A]


def test_waiting_has_an_end_of_its_own(agent: scripted.ScriptedAgent, client: Client) -> None:
    answering(agent, [changed(A, state=ENDED), changed(B), mark("t1", snapshot=True)])
    with pytest.raises(WaitTimedOut) as caught:
        client.wait([A, B], timeout=5)
    assert caught.value.job_ids == (B,)


def test_it_does_not_outlast_pauses() -> None:
    def broken() -> Iterator[pb.WatchResponse]:
        raise CallFailed("UNAVAILABLE", "it broke")

    # A whole pause would outlast this test by far.
    pauses = Backoff(attempts=20, first=3600.0, longest=3600.0)
    resumption = watch.Resumption(watch.Standing("", True), pauses, time.monotonic() + 0.2)
    with pytest.raises(WaitTimedOut):
        list(streams.ends(streams.changes(broken, resumption), (A,)))


# worker-client.


def test_the_command_shows_a_line_each(agent: scripted.ScriptedAgent) -> None:
    running = changed(A, "t2", command="make", args=["all\x1b"], principal="spiffe://x/user/ann")
    refusal = ("UNAUTHENTICATED", "UNAUTHENTICATED")
    answering(agent, [mark("t1"), running, EXPIRED], [mark("t3", snapshot=True), removed(B, "t4"), refusal])
    done = agent.cli("watch", A, "--state", "running", "--label", "a=b")
    assert done.returncode == 4
    assert done.stdout.decode().splitlines() == [
        f"{A}  RUNNING         ann         make 'all\\x1b'",
        f"{B}  REMOVED",
    ]
    assert done.stderr.decode().splitlines() == [
        "worker-client: changes are left out: it broke; the jobs follow as they are",
        "worker-client: it broke",
    ]


def test_the_command_in_json(agent: scripted.ScriptedAgent) -> None:
    answering(agent, [mark("t1"), changed(A, "t2"), EXPIRED], [removed(B, "t4"), ("UNAUTHENTICATED", "X")])
    done = agent.cli("watch", "--format", "json", "--resume", "t0")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["type"] for line in lines] == ["mark", "job", "restarted", "removed"]
    assert (lines[1]["job"]["id"], lines[1]["resume_token"], lines[3]["id"]) == (A, "t2", B)
    assert agent.requests[0].resume_token == "t0"


@pytest.mark.parametrize(
    ("args", "code", "shown"),
    [
        ((B,), 3, [B]),
        ((A, B, C), 3, [C, B, A]),
        ((A, C, B), 137, [C, B, A]),
        ((A,), 0, [A]),
        ((A, B, "--any"), 3, [B]),
    ],
)
def test_wait_exits_as_the_jobs_did(
    agent: scripted.ScriptedAgent, args: tuple[str, ...], code: int, shown: list[str]
) -> None:
    exited = {"end_reason": job_pb2.END_REASON_EXITED}

    def watch(request: pb.WatchRequest, _context: grpc.ServicerContext) -> Iterator[pb.WatchResponse]:
        yield from (changed(job_id) for job_id in request.job_ids)
        yield mark("t1", snapshot=True)
        ends = [
            changed(C, "t2", ENDED, end_reason=job_pb2.END_REASON_SIGNALED, signal=9),
            changed(B, "t3", ENDED, exit_code=3, **exited),
            changed(A, "t4", ENDED, exit_code=0, **exited),
        ]
        yield from (end for end in ends if end.job.id in request.job_ids)

    agent.handlers["Watch"] = watch
    done = agent.cli("wait", *args)
    assert done.returncode == code, done.stderr
    assert [line.split()[0] for line in done.stdout.decode().splitlines()] == shown


def test_wait_has_codes_of_its_own(agent: scripted.ScriptedAgent) -> None:
    answering(agent, [changed(A), mark("t1", snapshot=True)], [("PERMISSION_DENIED", "PERMISSION_DENIED")])
    done = agent.cli("wait", A, "--timeout", "300ms")
    assert (done.returncode, done.stderr) == (
        124,
        f"worker-client: job {A} has not ended in time; it goes on\n".encode(),
    )
    assert agent.cli("wait", A).returncode == 125
    assert agent.cli("wait").returncode == 125
    assert agent.cli("wait", A, "--timeout", "soon").returncode == 125

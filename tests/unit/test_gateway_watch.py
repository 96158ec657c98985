"""What a watcher is told, by which token it goes on, and what happens to one that does not read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobworker.api.v1 import job_pb2
from jobworker.errors import AgentUnavailable, InvalidField, WatchExpired
from jobworker.gateway import changes as changes_module
from jobworker.gateway import mirror as mirror_module
from jobworker.gateway.changes import Watched
from jobworker.gateway.known import Wanted
from jobworker.gateway.link import Lost
from jobworker.gateway.watch import Watch, read_token, token
from jobworker.jobs import State
from jobworker.wire.messages import (
    JobChanged,
    JobRemoved,
    JobReply,
    Synced,
)
from support.scripted_supervisor import job_id, record
from support.watching import EPOCH, EVERYTHING, WELCOME, Watcher, filled, run, tell

RUNNING, ENDED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_ENDED


def test_a_watch_begins_with_a_token_and_tells_of_what_comes() -> None:
    async def scenario() -> None:
        mirror = filled(record(1, revision=50))
        watcher = Watcher(mirror)
        assert await watcher.read() == ["mark"]
        assert read_token(watcher.token) == (EPOCH, 100)
        tell(mirror, JobChanged(record(2, revision=101)), JobChanged(record(1, revision=102, state=State.ENDED)))
        assert await watcher.read() == [(2, RUNNING), (1, ENDED)]
        tell(mirror, JobRemoved(job_id(1), 103))
        assert await watcher.read() == [(1, None)]
        assert read_token(watcher.token) == (EPOCH, 103)

    run(scenario)


def test_a_snapshot_comes_first_and_its_end_is_marked() -> None:
    async def scenario() -> None:
        mirror = filled(*(record(i, revision=i + 1) for i in range(250)), newest=300)
        watcher = Watcher(mirror, snapshot=True)
        some = await watcher.read(50)
        # Between two pages.
        tell(mirror, JobChanged(record(3, revision=301, state=State.ENDED)), JobRemoved(job_id(4), 302))
        *rest, mark, first, second = await watcher.read()
        assert watcher.token == token(EPOCH, 302)
        seen = [job for job, _ in (*some, *rest)]
        assert seen == [i for i in reversed(range(250)) if i != 4]
        assert (mark, first, second) == ("complete", (3, ENDED), (4, None))

    run(scenario)


def test_a_token_is_good_for_another_gateway() -> None:
    async def scenario() -> None:
        before = filled(record(1, revision=50), record(2, revision=51))
        watcher = Watcher(before)
        tell(before, JobChanged(record(1, revision=101)))
        assert await watcher.read() == ["mark", (1, RUNNING)]
        after = filled(record(1, revision=101), record(2, revision=102, state=State.ENDED), newest=102)
        assert await Watcher(after, resume=watcher.token).read() == [(2, ENDED)]

    run(scenario)


@pytest.mark.parametrize(
    ("resume", "told"),
    [
        (token("other boot", 100), "another agent"),
        (token(EPOCH, 101), "later time"),
        (token(EPOCH, 69), "jobs were removed"),
    ],
)
def test_a_token_that_cannot_be_gone_on_from(resume: str, told: str) -> None:
    mirror = filled(newest=100, removed=70)
    with pytest.raises(WatchExpired, match=told):
        Watcher(mirror, resume=resume)
    Watcher(mirror, resume=token(EPOCH, 70))


@pytest.mark.parametrize("text", ["x", "MTox=", "é", "A" * 300, token(EPOCH, 5)[:-1], token(EPOCH, 5) + "="])
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(InvalidField, match="resume_token"):
        read_token(text)


def test_an_answer_that_overtakes_a_change_costs_nobody_that_change() -> None:
    """Who resumed at the first job's revision would never hear of the second's."""

    async def scenario() -> None:
        mirror = filled()
        watcher = Watcher(mirror)
        await watcher.read()
        tell(mirror, JobReply(record(1, revision=110)))
        assert await watcher.read() == []
        tell(mirror, JobChanged(record(2, revision=107)))
        assert (await watcher.read(), watcher.token) == ([(2, RUNNING)], token(EPOCH, 107))
        tell(mirror, JobChanged(record(1, revision=110)))
        assert await watcher.read() == [(1, RUNNING)]

    run(scenario)


def test_who_does_not_read_gets_the_newest_state() -> None:
    async def scenario() -> None:
        mirror = filled()
        slow, quick = Watcher(mirror), Watcher(mirror)
        await slow.read()
        for step in range(100):
            state = State.ENDED if step == 99 else State.RUNNING
            tell(mirror, JobChanged(record(1, revision=200 + 2 * step, state=state)))
            tell(mirror, JobChanged(record(2, revision=201 + 2 * step)))
            await quick.read()
        # One was on its way to it already.
        assert await slow.read() == [(1, RUNNING), (1, ENDED), (2, RUNNING)]
        assert slow.token == quick.token

    run(scenario)


def test_what_is_held_for_watchers_does_not_grow_with_the_changes() -> None:
    mirror = filled()
    for step in range(20_000):
        tell(mirror, JobChanged(record(step % 10, revision=200 + step)))
    assert len(list(mirror.changes.behind((0, "")))) == 10
    assert len(mirror.changes._order) < 2_000


def test_who_does_not_read_while_too_many_go_has_to_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "_MAX_GONE", 10)

    async def scenario() -> None:
        mirror = filled(*(record(i, revision=i + 1) for i in range(20)))
        slow, quick = Watcher(mirror), Watcher(mirror)
        await slow.read()
        for i in range(12):
            tell(mirror, JobRemoved(job_id(i), 200 + i))
            await quick.read()
        assert await quick.read() == []
        assert await slow.read(1) == [(0, None)]
        with pytest.raises(WatchExpired, match="jobs were removed"):
            await slow.read()
        assert len(mirror.changes._gone) == 10

    run(scenario)


def test_what_was_removed_unheard_stays_unknown_when_an_earlier_removal_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(changes_module, "_MAX_GONE", 1)
    jobs = [record(i, revision=i + 1) for i in range(3)]
    mirror = filled(*jobs)
    tell(mirror, JobRemoved(job_id(0), 200), Lost("broken"), WELCOME, *map(JobChanged, jobs[1:]))
    tell(mirror, Synced(400, 350, 1), JobRemoved(job_id(1), 401))
    with pytest.raises(WatchExpired, match="jobs were removed"):
        Watcher(mirror, resume=token(EPOCH, 300))
    Watcher(mirror, resume=token(EPOCH, 350))


@pytest.mark.parametrize(
    ("watched", "told"),
    [
        (Watched(ids=frozenset({job_id(1), job_id(9)})), [(1, RUNNING), (1, ENDED), (1, None)]),
        (Watched(wanted=Wanted(labels=(("a", "1"),))), [(2, RUNNING), (2, ENDED), (2, None)]),
        (Watched(wanted=Wanted(principal="p")), [(3, RUNNING), (3, ENDED), (3, None)]),
        (Watched(ids=frozenset({job_id(1)}), wanted=Wanted(principal="p")), []),
        (
            Watched(wanted=Wanted(states=frozenset({State.ENDED}))),
            [(1, ENDED), (2, ENDED), (3, ENDED), (1, None), (2, None), (3, None)],
        ),
    ],
)
def test_only_what_fits_is_told(watched: Watched, told: list[Any]) -> None:
    jobs = [record(1), record(2, labels=(("a", "1"), ("b", "2"))), record(3, principal="p")]

    async def scenario() -> None:
        mirror = filled()
        watcher, read = Watcher(mirror, watched), list[Any]()
        assert await watcher.read() == ["mark"]
        revision = 200
        for state in (State.RUNNING, State.ENDED, None):
            for job in jobs:
                revision += 1
                event = JobChanged(replace(job, state=state, revision=revision)) if state else None
                tell(mirror, event or JobRemoved(job.job_id, revision))
                read += await watcher.read()
        assert read == told
        await watcher.leave()
        assert not mirror.changes._waiting

    run(scenario)


def test_who_hears_nothing_gets_a_token_now_and_then() -> None:
    async def scenario() -> None:
        mirror = filled()
        watcher = Watcher(mirror, Watched(wanted=Wanted(labels=(("a", "1"),))))
        await watcher.read()
        tell(mirror, *(JobChanged(record(i, revision=200 + i)) for i in range(1_500)))
        assert await watcher.read() == []
        tell(mirror, JobChanged(record(7, labels=(("a", "1"),), revision=5_000)))
        assert await watcher.read() == ["mark", (7, RUNNING)]

    run(scenario)


def test_a_supervisor_that_starts_anew_is_no_break() -> None:
    async def scenario() -> None:
        mirror = filled(*(record(i, revision=10 + i) for i in range(4)))
        watcher = Watcher(mirror)
        await watcher.read()
        tell(mirror, Lost("dead"), WELCOME, JobChanged(record(0, revision=10)))
        tell(mirror, JobChanged(record(1, revision=302, state=State.ENDED)))
        assert await watcher.read() == [], "before all are reported, the order is not complete"
        tell(mirror, Synced(310, 300, 300))
        assert await watcher.read(1) == [(2, None)]
        # Of two that were found to be gone together, the second is not behind this token yet.
        assert read_token(watcher.token) == (EPOCH, 100)
        assert await watcher.read() == [(3, None), (1, ENDED)]

    run(scenario)


def test_removals_that_nobody_heard_of_end_a_watch() -> None:
    async def scenario() -> None:
        mirror = filled()
        watcher = Watcher(mirror)
        await watcher.read()
        # The connection was lost, and the supervisor was not: in between a job has come and gone.
        tell(mirror, Lost("broken"), WELCOME, Synced(300, 250, 1))
        with pytest.raises(WatchExpired):
            await watcher.read()

    run(scenario)


def test_another_agent_ends_a_watch() -> None:
    async def scenario() -> None:
        mirror = filled(record(1, revision=5))
        watcher = Watcher(mirror)
        await watcher.read()
        tell(mirror, Lost("gone"), replace(WELCOME, epoch="another"), Synced(900, 800, 800))
        with pytest.raises(WatchExpired, match="another agent"):
            await watcher.read()

    run(scenario)


def test_a_supervisor_that_stays_away_ends_a_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "PATIENCE_SECONDS", 0.01)

    async def scenario() -> None:
        mirror = filled()
        messages = Watch(mirror, EVERYTHING, lambda _: True, None, snapshot=False).messages()
        await anext(messages)
        tell(mirror, Lost("its reason"))
        with pytest.raises(AgentUnavailable, match="its reason"):
            await anext(messages)

    run(scenario)

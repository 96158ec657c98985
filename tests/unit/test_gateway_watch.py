"""What a watcher is told, by which token it goes on, and what happens to one that does not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker import policy
from jobworker.api.v1 import job_pb2
from jobworker.errors import AgentUnavailable, InvalidField, WatchExpired
from jobworker.gateway import changes as changes_module
from jobworker.gateway import mirror as mirror_module
from jobworker.gateway import outgoing
from jobworker.gateway.changes import Watched
from jobworker.gateway.known import Wanted
from jobworker.gateway.link import Lost
from jobworker.gateway.mirror import Mirror
from jobworker.gateway.watch import Sees, Told, Watch, read_token, token
from jobworker.jobs import JobRecord, State
from jobworker.wire.messages import (
    PROTOCOL,
    JobChanged,
    JobRemoved,
    JobReply,
    PolicyIs,
    Synced,
    Welcome,
)
from support.scripted_supervisor import HOST, job_id, record

EPOCH = "agent boot"
WELCOME = Welcome(PROTOCOL, HOST, "1.0", PolicyIs(policy.default((), "standard"), ""), EPOCH)
EVERYTHING = Watched()
T = TypeVar("T")


def filled(*records: JobRecord, newest: int = 100, removed: int = 1, began: int = 1) -> Mirror:
    """What a gateway knows once a supervisor has told of these."""
    mirror = Mirror()
    tell(mirror, WELCOME, *(JobChanged(known) for known in records), Synced(newest, removed, began))
    return mirror


def tell(mirror: Mirror, *messages: Any) -> None:
    for message in messages:
        mirror.apply(message)


class Watcher:
    """One who reads a watch as far as there is something to read."""

    def __init__(
        self,
        mirror: Mirror,
        watched: Watched = EVERYTHING,
        *,
        resume: str = "",
        snapshot: bool = False,
        sees: Sees = lambda _: True,
    ) -> None:
        since = None
        if resume:
            epoch, since = read_token(resume)
            mirror.changes.check(epoch, since)
        self._messages: AsyncGenerator[Told, None] = Watch(
            mirror, watched, sees, since, snapshot=snapshot
        ).messages()
        self._next: asyncio.Future[Told] | None = None
        self.token = resume

    async def read(self, most: int = 1_000_000) -> list[Any]:
        """What is there: states by number of the job, None for one that is gone, marks as what they are."""
        read = list[Any]()
        while len(read) < most:
            if self._next is None:
                self._next = asyncio.ensure_future(anext(self._messages))
            for _ in range(6):
                await asyncio.sleep(0)
            if not self._next.done():
                break
            told, self._next = self._next.result(), None
            self.token = told.token or self.token
            assert told.message.resume_token == told.token
            read.append(_plain(told))
        return read

    async def leave(self) -> None:
        if self._next:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self._messages.aclose()


def _plain(told: Told) -> Any:
    message = told.message
    match message.WhichOneof("event"):
        case "job":
            return number(message.job.id), message.job.state
        case "removed_job_id":
            return number(message.removed_job_id), None
        case _:
            return "complete" if message.mark.snapshot_complete else "mark"


def number(text: str) -> int:
    return int(text.replace("-", ""))


def run(scenario: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(scenario(), 60)

    return asyncio.run(bounded())


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


class Host:
    """A supervisor as it numbers its changes, and the gateways that come and go before it."""

    def __init__(self) -> None:
        self.clock = 1
        self.began = self.removed = self.tick()
        self.jobs: dict[int, JobRecord] = {}
        self.mirror = self.new_gateway()

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def change(self, which: int, state: State) -> None:
        self.jobs[which] = record(which, state=state, revision=self.tick())
        tell(self.mirror, JobChanged(self.jobs[which]))

    def remove(self, which: int) -> None:
        if self.jobs.pop(which, None):
            self.removed = self.tick()
            tell(self.mirror, JobRemoved(job_id(which), self.removed))

    def new_gateway(self) -> Mirror:
        self.mirror = Mirror()
        self._report()
        return self.mirror

    def new_supervisor(self, unsaved: int) -> None:
        """It dies, and the next one finds other jobs than were told of: a disk was full."""
        tell(self.mirror, Lost("dead"))
        self.began = self.removed = self.tick()
        self.jobs.pop(unsaved, None)
        for which, job in self.jobs.items():
            if job.state is not State.ENDED:
                self.jobs[which] = replace(job, revision=self.tick())
        self._report()

    def lose_connection(self, unheard: int) -> None:
        tell(self.mirror, Lost("broken"))
        if self.jobs.pop(unheard, None):
            self.removed = self.tick()
        self._report()

    def _report(self) -> None:
        jobs = sorted(self.jobs.values(), key=lambda job: job.revision)
        tell(self.mirror, WELCOME, *map(JobChanged, jobs), Synced(self.clock, self.removed, self.began))


STEPS = st.one_of(
    st.tuples(st.just("change"), st.integers(0, 6), st.sampled_from(State)),
    st.tuples(st.just("remove"), st.integers(0, 6)),
    st.tuples(st.just("read"), st.integers(0, 4)),
    st.tuples(st.just("break")),
    st.tuples(st.just("new_gateway")),
    st.tuples(st.just("new_supervisor"), st.integers(0, 6)),
    st.tuples(st.just("lose_connection"), st.integers(0, 6)),
)


class Viewer:
    """A client that keeps what it is told of each job, and resumes wherever it was cut off."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._watcher = Watcher(host.mirror, snapshot=True)
        # In this snapshot.
        self._fresh: set[int] = set()
        self.view: dict[int, int] = {}

    async def again(self) -> None:
        token = self._watcher.token
        if not token:
            # It was cut off within its snapshot.
            await self.anew()
            return
        await self._watcher.leave()
        try:
            self._watcher = Watcher(self._host.mirror, resume=token)
        except WatchExpired:
            await self.anew()

    async def anew(self) -> None:
        await self._watcher.leave()
        self._watcher = Watcher(self._host.mirror, snapshot=True)
        self._fresh = set()

    async def read(self, most: int) -> None:
        try:
            for event in await self._watcher.read(most):
                self._take(event)
        except WatchExpired:
            await self.anew()

    def _take(self, event: Any) -> None:
        match event:
            case "complete":
                self.view = {job: state for job, state in self.view.items() if job in self._fresh}
            case (job, None):
                self.view.pop(job, None)
            case (job, state):
                self._fresh.add(job)
                self.view[job] = state

    async def leave(self) -> None:
        await self._watcher.leave()


@given(st.lists(STEPS, max_size=40))
def test_whatever_happens_a_watcher_comes_to_know_what_is_there(steps: list[tuple[Any, ...]]) -> None:
    async def scenario() -> None:
        host = Host()
        viewer = Viewer(host)
        for name, *arguments in steps:
            if name == "read":
                await viewer.read(*arguments)
            elif name == "break":
                await viewer.again()
            else:
                getattr(host, name)(*arguments)
                if name == "new_gateway":
                    await viewer.again()
        for _ in range(2):
            await viewer.read(1_000)
        assert viewer.view == {which: outgoing.job(job).state for which, job in host.jobs.items()}
        await viewer.leave()

    run(scenario)

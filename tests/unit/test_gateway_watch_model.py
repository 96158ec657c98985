"""Whatever happens to jobs, gateway and watchers: a watcher comes to know what is there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jobworker.api.v1 import job_pb2
from jobworker.errors import WatchExpired
from jobworker.gateway import outgoing
from jobworker.gateway.link import Lost
from jobworker.gateway.mirror import Mirror
from jobworker.jobs import JobRecord, State
from jobworker.wire.messages import (
    JobChanged,
    JobRemoved,
    Synced,
)
from support.scripted_supervisor import job_id, record
from support.watching import WELCOME, Watcher, run, tell

RUNNING, ENDED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_ENDED


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

"""The connection to the supervisor: answers, events, and what happens when the other side goes away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobworker.errors import AgentUnavailable, JobNotFound, ProtocolError
from jobworker.gateway import link as link_module
from jobworker.gateway.connection import Connection, ConnectionLost
from jobworker.gateway.link import Lost, SupervisorLink
from jobworker.jobs import JobSpec
from jobworker.wire import frames, sockets
from jobworker.wire.messages import (
    PROTOCOL,
    Done,
    FollowLog,
    Hello,
    InspectJob,
    JobChanged,
    JobRemoved,
    JobReply,
    LogSegment,
    OpenLog,
    StartJob,
    Synced,
    Welcome,
)
from support.link import CALLER, DEADLINE
from support.scripted_supervisor import HOST, SILENCE, Answer, ScriptedSupervisor, job_id, linked, record

INSPECT = InspectJob(job_id(1))


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[ScriptedSupervisor]:
    scripted = ScriptedSupervisor(str(tmp_path))
    scripted.records = [record(1)]
    yield scripted
    scripted.close()


class Heard:
    """Everything a link handed on."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self._news = asyncio.Event()

    def apply(self, message: Any) -> None:
        self.messages.append(message)
        self._news.set()

    async def until(self, kind: type[Any], times: int = 1) -> None:
        while sum(isinstance(message, kind) for message in self.messages) < times:
            self._news.clear()
            await self._news.wait()


@contextlib.contextmanager
def listening(directory: Path) -> Iterator[socket.socket]:
    """A socket where a supervisor would listen."""
    fd = os.open(directory, os.O_PATH)
    try:
        with sockets.listen(fd, "socket", 0o600) as listener:
            yield listener
    finally:
        os.close(fd)


Scenario = Callable[[SupervisorLink, Heard], Awaitable[Any]]


def run(path: str, scenario: Scenario) -> Any:
    heard = Heard()

    async def heard_by(link: SupervisorLink) -> Any:
        link.listen(heard.apply)
        return await scenario(link, heard)

    return linked(path, heard_by)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_it_says_hello_and_hands_on_what_it_hears(supervisor: ScriptedSupervisor) -> None:
    async def scenario(_link: SupervisorLink, heard: Heard) -> list[Any]:
        await heard.until(Synced)
        return heard.messages

    welcome = Welcome(PROTOCOL, HOST, "1.0", supervisor.policy)
    assert run(supervisor.path, scenario) == [welcome, JobChanged(record(1)), Synced()]
    assert supervisor.requests == [Hello(PROTOCOL, subscribe=True)]


def test_many_requests_at_once_get_their_own_answers(supervisor: ScriptedSupervisor) -> None:
    supervisor.records = [record(i) for i in range(200)]

    async def scenario(link: SupervisorLink, _heard: Heard) -> list[Any]:
        asked = (link.ask(InspectJob(job_id(i)), JobReply, repeatable=True) for i in range(200))
        return [reply.record.job_id for reply, _ in await asyncio.gather(*asked)]

    assert run(supervisor.path, scenario) == [job_id(i) for i in range(200)]


def test_more_than_the_socket_holds_is_sent_as_the_other_side_reads(supervisor: ScriptedSupervisor) -> None:
    supervisor.handlers[StartJob] = lambda _: JobReply(record(1))
    large = StartJob(CALLER, JobSpec("true", ("x" * 120_000,) * 2))

    async def scenario(link: SupervisorLink, _heard: Heard) -> int:
        return len(await asyncio.gather(*(link.ask(large, JobReply, repeatable=False) for _ in range(20))))

    assert run(supervisor.path, scenario) == 20


def test_an_error_is_raised_as_what_it_is(supervisor: ScriptedSupervisor) -> None:
    def refuse(request: InspectJob) -> Any:
        raise JobNotFound(request.job_id)

    supervisor.handlers[InspectJob] = refuse
    with pytest.raises(JobNotFound) as caught:
        run(supervisor.path, lambda link, _: link.ask(INSPECT, JobReply, repeatable=True))
    assert caught.value.job_id == INSPECT.job_id


def test_an_answer_of_another_type_is_an_error(supervisor: ScriptedSupervisor) -> None:
    supervisor.handlers[InspectJob] = lambda _: Done()
    with pytest.raises(ProtocolError):
        run(supervisor.path, lambda link, _: link.ask(INSPECT, JobReply, repeatable=True))


def dying(times: int) -> Callable[[Any], Any]:
    """Goes away over the first requests, then answers."""
    left = [None] * times

    def handler(_request: Any) -> Any:
        return left.pop() if left else JobReply(record(1))

    return handler


def test_a_repeatable_request_outlives_the_supervisor(supervisor: ScriptedSupervisor) -> None:
    supervisor.handlers[InspectJob] = dying(2)
    reply, _ = run(supervisor.path, lambda link, _: link.ask(INSPECT, JobReply, repeatable=True))
    assert reply == JobReply(record(1))
    assert supervisor.requests.count(INSPECT) == 3


def test_a_request_that_kills_the_supervisor_each_time_is_given_up(supervisor: ScriptedSupervisor) -> None:
    supervisor.handlers[InspectJob] = lambda _: None
    with pytest.raises(AgentUnavailable):
        run(supervisor.path, lambda link, _: link.ask(INSPECT, JobReply, repeatable=True))
    assert supervisor.requests.count(INSPECT) == 3


def test_other_requests_are_sent_once(supervisor: ScriptedSupervisor) -> None:
    request = StartJob(CALLER, JobSpec("true"))
    supervisor.handlers[StartJob] = lambda _: None
    with pytest.raises(AgentUnavailable, match="may have done it or not"):
        run(supervisor.path, lambda link, _: link.ask(request, JobReply, repeatable=False))
    assert supervisor.requests.count(request) == 1


@pytest.mark.parametrize("unread", [False, True], ids=["it had read all", "a request lay unread"])
def test_a_request_that_finds_the_supervisor_gone_gets_no_answer_and_loses_no_news(
    tmp_path: Path,
    unread: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    # More than are taken in at a time.
    news = [JobRemoved(job_id(number)) for number in range(100)]

    async def scenario() -> list[Any]:
        heard: list[Any] = []
        with listening(tmp_path) as listener:
            connection = Connection(str(tmp_path / "socket"), heard.append)
            with contextlib.closing(sockets.accept(listener)) as supervisor:
                asked = asyncio.create_task(connection.request(INSPECT)) if unread else None
                # It sends the request.
                await asyncio.sleep(0)
                for message in news:
                    sockets.send(supervisor, frames.encode(message, 0))
            # Before the event loop has had a turn to see that.
            for request in (asked, connection.request(INSPECT)):
                if request:
                    with pytest.raises(ConnectionLost, match="closed the connection"):
                        await asyncio.wait_for(request, DEADLINE)
        return heard

    assert asyncio.run(scenario()) == news


def test_a_supervisor_that_is_silent_is_not_waited_for_without_end(
    supervisor: ScriptedSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_ANSWER_SECONDS", 0.05)
    supervisor.handlers[InspectJob] = lambda _: SILENCE
    with pytest.raises(AgentUnavailable, match="silent"):
        run(supervisor.path, lambda link, _: link.ask(INSPECT, JobReply, repeatable=True))
    assert supervisor.requests.count(INSPECT) == 1


def test_nor_is_one_that_does_not_greet(supervisor: ScriptedSupervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PATIENCE_SECONDS", 0.05)
    supervisor.handlers[Hello] = lambda _: SILENCE
    with pytest.raises(AgentUnavailable, match="has not been reached"):
        run(supervisor.path, lambda link, _: link.ask(INSPECT, JobReply, repeatable=True))


def test_it_reconnects_and_hears_everything_again(supervisor: ScriptedSupervisor) -> None:
    async def scenario(_link: SupervisorLink, heard: Heard) -> list[Any]:
        await heard.until(Synced)
        supervisor.drop()
        await heard.until(Synced, times=2)
        return heard.messages

    heard = run(supervisor.path, scenario)
    first, lost = heard.index(Synced()), [isinstance(message, Lost) for message in heard]
    assert lost.index(True) == first + 1
    assert heard[first + 2 :] == heard[: first + 1]


def test_a_request_waits_for_a_supervisor_that_is_about_to_come(tmp_path: Path) -> None:
    async def scenario(link: SupervisorLink, heard: Heard) -> Any:
        asking = asyncio.create_task(link.ask(INSPECT, JobReply, repeatable=False))
        await heard.until(Lost)
        late = ScriptedSupervisor(str(tmp_path))
        late.records = [record(1)]
        try:
            return await asking
        finally:
            await asyncio.to_thread(late.close)

    reply, _ = run(str(tmp_path / "supervisor.sock"), scenario)
    assert reply == JobReply(record(1))


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PATIENCE_SECONDS", 0.05)
    with pytest.raises(AgentUnavailable, match="No such file"):
        run(str(tmp_path / "no.sock"), lambda link, _: link.ask(INSPECT, JobReply, repeatable=True))


def test_another_version_of_the_protocol_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PATIENCE_SECONDS", 0.3)
    scripted = ScriptedSupervisor(str(tmp_path), protocol=PROTOCOL + 1)
    try:
        with pytest.raises(AgentUnavailable, match=f"version {PROTOCOL + 1} of the protocol"):
            run(scripted.path, lambda link, _: link.ask(INSPECT, JobReply, repeatable=True))
    finally:
        scripted.close()


def segment_answer(request: OpenLog) -> Answer:
    return Answer(LogSegment(request.job_id, request.segment, 0), (os.memfd_create("a"), os.memfd_create("b")))


def test_descriptors_come_with_their_answer(supervisor: ScriptedSupervisor) -> None:
    supervisor.handlers[OpenLog] = segment_answer

    async def scenario(link: SupervisorLink, _heard: Heard) -> int:
        _, fds = await link.ask(OpenLog(job_id(1), 0), LogSegment, repeatable=True)
        with fds:
            return len(fds)

    assert run(supervisor.path, scenario) == 2


@pytest.mark.parametrize("turns", range(40))
def test_descriptors_for_a_caller_who_has_left_are_closed(supervisor: ScriptedSupervisor, turns: int) -> None:
    """Whenever the caller leaves: before the answer, or between its arrival and its delivery."""
    supervisor.handlers[OpenLog] = segment_answer

    async def scenario(link: SupervisorLink, heard: Heard) -> None:
        await heard.until(Synced)
        before = descriptors()
        asking = asyncio.create_task(link.ask(OpenLog(job_id(1), 0), LogSegment, repeatable=True))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        outcome = (await asyncio.gather(asking, return_exceptions=True))[0]
        if isinstance(outcome, tuple):
            outcome[1].close()
        # Behind this answer, that one has come as well.
        await link.ask(FollowLog(job_id(1)), JobReply, repeatable=False)
        assert descriptors() == before

    run(supervisor.path, scenario)

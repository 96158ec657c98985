"""What the client for asyncio makes of calls that break or are ended, against a real server."""

from __future__ import annotations

import asyncio
import math
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client import Endpoint, aio
from jobworker.client.aio.client import AsyncClient
from jobworker.client.failures import CallFailed
from jobworker.errors import TlsProblem
from jobworker.jobs import JobSpec
from support import certs, scripted

ID = "k7f3-9m2q-x4tz-b1cd"


class Input:
    """A job's standard input, as an agent takes it whose first call breaks behind so many bytes."""

    def __init__(self, breaks_behind: int) -> None:
        self.data = b""
        self.called_again = threading.Event()
        self._calls = 0
        self._breaks_behind = breaks_behind

    def take(
        self, messages: Iterator[pb.WriteStdinRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.WriteStdinResponse]:
        self._calls += 1
        breaks = self._calls == 1
        if not breaks:
            self.called_again.set()
        for message in messages:
            self.data += message.data
            yield pb.WriteStdinResponse(taken=len(self.data), ended=message.end)
            if breaks and len(self.data) >= self._breaks_behind:
                scripted.fail(context, "UNAVAILABLE", "AGENT_UNAVAILABLE", "it broke")


async def no_task_is_left() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        _, left = await asyncio.wait(others, timeout=5)
        assert not left


@pytest.mark.parametrize("end", [True, False])
def test_input_that_is_waited_for_goes_on_behind_a_break(agent: scripted.ScriptedAgent, *, end: bool) -> None:
    job = Input(breaks_behind=3)
    agent.handlers["WriteStdin"] = job.take

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        # The call is broken, with all of it taken, and made again before there is more.
        assert await asyncio.to_thread(job.called_again.wait, 10)
        yield b"two"

    async def write() -> None:
        async with aio.connect(agent.endpoint()) as client, asyncio.timeout(20):
            written = await client.write_stdin(ID, pieces(), end=end)
            assert (written.taken, written.ended, job.data) == (6, end, b"onetwo")

    asyncio.run(write())


def test_input_that_is_refused_leaves_no_task(agent: scripted.ScriptedAgent) -> None:
    def refuse(_messages: Iterator[pb.WriteStdinRequest], context: grpc.ServicerContext) -> None:
        scripted.fail(context, "FAILED_PRECONDITION", "STDIN_ENDED", "it takes no more", taken="0")

    agent.handlers["WriteStdin"] = refuse

    async def write() -> None:
        async with aio.connect(agent.endpoint()) as client:
            with pytest.raises(CallFailed, match="it takes no more"):
                await client.write_stdin(ID, [b"data"])
            await no_task_is_left()

    asyncio.run(write())


def test_a_refusal_that_overtakes_what_is_sent_is_told(agent: scripted.ScriptedAgent) -> None:
    jobs_that_read: set[str] = set()

    def refuse(messages: Iterator[pb.WriteStdinRequest], context: grpc.ServicerContext) -> Iterator[Any]:
        job_id = next(messages).job_id
        if job_id in jobs_that_read:
            jobs_that_read.remove(job_id)
            # What the client sends upon this comes too late.
            yield pb.WriteStdinResponse()
        scripted.fail(context, "FAILED_PRECONDITION", "STDIN_ENDED", "it takes no more", taken="0")

    agent.handlers["WriteStdin"] = refuse

    async def write() -> None:
        async with aio.connect(agent.endpoint()) as client:
            for _ in range(100):
                jobs_that_read.add(ID)
                with pytest.raises(CallFailed, match="it takes no more"):
                    await client.write_stdin(ID, [bytes(64 * 1024)] * 100)

    asyncio.run(write())


def test_a_host_may_be_called_as_a_scheme_of_grpc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = certs.dev_pki().files("writer")

    async def query() -> None:
        async with aio.connect(Endpoint("unix:7443", files.ca, files.cert, files.key)) as client:
            with pytest.raises(TlsProblem, match="the host unix is not known"):
                await client.query(ID)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("7443")
        listener.listen()
        listener.setblocking(False)
        asyncio.run(query())
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("connect_timeout", [5.0, 1e9, math.inf])
@pytest.mark.parametrize("seconds", [1e10, 1e300, math.inf])
def test_a_time_out_may_be_as_long_as_one_likes(
    agent: scripted.ScriptedAgent, seconds: float, connect_timeout: float
) -> None:
    job = job_pb2.Job(id=ID, state=job_pb2.JOB_STATE_ENDED)
    agent.handlers["Query"] = lambda _request, _context: pb.QueryResponse(job=job)
    agent.handlers["Watch"] = lambda _request, _context: iter([pb.WatchResponse(job=job)])

    async def ask() -> None:
        async with aio.connect(agent.endpoint(), timeout=seconds, connect_timeout=connect_timeout) as client:
            assert await client.query(ID) == job
            assert await client.wait([ID], timeout=seconds) == [job]

    asyncio.run(ask())


def test_why_there_is_no_connection_is_looked_for_within_the_time_given() -> None:
    files = certs.dev_pki().files("writer")

    async def query(addr: str) -> None:
        async with aio.connect(Endpoint(addr, files.ca, files.cert, files.key), connect_timeout=0.5) as client:
            with pytest.raises(TlsProblem, match="does not answer a TLS handshake"):
                async with asyncio.timeout(4):
                    await client.query(ID)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(query(f"127.0.0.1:{silent.getsockname()[1]}"))


def test_closing_ends_what_others_wait_for(agent: scripted.ScriptedAgent) -> None:
    asked, left = threading.Barrier(5), threading.Event()

    def stay(_request: Any, _context: grpc.ServicerContext) -> Iterator[Any]:
        asked.wait(10)
        left.wait(10)
        yield from ()

    def stop(_request: pb.StopRequest, _context: grpc.ServicerContext) -> pb.StopResponse:
        asked.wait(10)
        left.wait(10)
        return pb.StopResponse()

    agent.handlers.update(Stream=stay, Watch=stay, WriteStdin=stay, Stop=stop)

    async def read(client: AsyncClient) -> None:
        async for _ in client.stream(ID, follow=True):
            pass

    async def close() -> None:
        async with aio.connect(agent.endpoint()) as client:
            calls = (read(client), client.wait([ID]), client.write_stdin(ID, [b"data"]), client.stop(ID))
            tasks = [asyncio.ensure_future(call) for call in calls]
            await asyncio.to_thread(asked.wait, 10)
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        for failure in ends:
            assert isinstance(failure, CallFailed)
            assert (failure.code, failure.message) == ("CANCELLED", "the connection was closed")

    try:
        asyncio.run(close())
    finally:
        left.set()


def test_who_cancels_a_call_finds_it_cancelled(agent: scripted.ScriptedAgent) -> None:
    left = threading.Event()

    def stop(_request: pb.StopRequest, _context: grpc.ServicerContext) -> pb.StopResponse:
        left.wait(10)
        return pb.StopResponse()

    agent.handlers["Stop"] = stop

    async def cancel() -> None:
        async with aio.connect(agent.endpoint()) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.stop(ID)
            stopping = asyncio.create_task(client.stop(ID))
            await asyncio.sleep(0.2)
            stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping

    try:
        asyncio.run(cancel())
    finally:
        left.set()


def test_a_call_that_got_through_is_not_called_a_connection_that_never_came_about(
    agent: scripted.ScriptedAgent,
) -> None:
    async def start(port: int) -> None:
        async with aio.connect(agent.endpoint(port)) as client:
            await client.start(JobSpec("make"))

    with scripted.breaking_wire(agent.port, repeat(sys.maxsize)) as wire:

        def die(_request: object, context: grpc.ServicerContext) -> pb.StartResponse:
            gone = threading.Event()
            context.add_callback(gone.set)
            wire.cut()
            gone.wait(10)
            return pb.StartResponse()

        agent.handlers["Start"] = die
        with pytest.raises(CallFailed) as caught:
            asyncio.run(start(wire.port))
    assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "")
    with pytest.raises(TlsProblem, match="nobody listens"):
        asyncio.run(start(wire.port))
    assert len(agent.requests) == 1

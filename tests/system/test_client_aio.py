"""The client for asyncio against a whole agent: the same calls, and streams that go on whatever dies."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from jobworker.api.v1 import job_pb2
from jobworker.client import Endpoint, aio
from jobworker.client.aio.client import AsyncClient
from jobworker.client.changes import Changed, Mark, Removed
from jobworker.client.failures import CallFailed, WaitTimedOut
from jobworker.client.output import Chunk, End, Gap, Lines
from jobworker.client.rpc.client import Client
from jobworker.errors import InvalidField, JobNotFound, TlsProblem
from jobworker.jobs import JobSpec, OutputFormat, Source, State
from jobworker.limits import Limits
from support.agent import Agent
from support.whole import Whole

SLEEP = JobSpec("sleep", ("1000",))


def endpoint(agent: Agent, role: str = "writer") -> Endpoint:
    files = (os.path.join(agent.pki_dir, name) for name in ("ca.pem", f"{role}.pem", f"{role}.key"))
    return Endpoint(agent.addr, *files)


async def output(client: AsyncClient, job_id: str) -> bytes:
    return b"".join([item.data async for item in client.stream(job_id, follow=True) if isinstance(item, Chunk)])


def test_it_has_every_method_of_the_other_client() -> None:
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_"):
            other = inspect.signature(getattr(AsyncClient, name))
            assert list(other.parameters) == list(inspect.signature(method).parameters), name


def test_a_job_s_life(agent: Agent) -> None:
    async def live() -> None:
        async with aio.connect(endpoint(agent)) as client:
            await client.reach()
            job = await client.start(replace(SLEEP, labels=(("test", "aio"),)), idempotency_key="aio")
            assert (
                await client.start(replace(SLEEP, labels=(("test", "aio"),)), idempotency_key="aio")
            ).id == job.id
            assert (await client.query(job.id)).state == job_pb2.JOB_STATE_RUNNING
            assert await client.resolve(job.id[:10]) == job.id
            assert [each.id async for each in client.list_jobs(labels={"test": "aio"})] == [job.id]
            assert (await client.signal(job.id, "CONT")).id == job.id
            limited = await client.update(job.id, Limits(pids=50))
            assert "50" in [limit.value for limit in limited.limits if limit.name == "pids"]
            stopped = await client.stop(job.id)
            assert stopped.end_reason == job_pb2.END_REASON_STOPPED
            await client.delete(job.id)
            assert (await client.agent_info()).max_active_jobs

    asyncio.run(live())


def test_its_output(agent: Agent) -> None:
    async def read() -> None:
        async with aio.connect(endpoint(agent)) as client:
            job = await client.start(JobSpec("sh", ("-c", "echo out; sleep 0.2; echo err >&2")))
            assert await output(client, job.id) == b"out\nerr\n"
            await client.wait([job.id])
            items = [item async for item in client.stream(job.id, source=Source.STDERR)]
            assert items == [Chunk(4, b"err\n", Source.STDERR), End(8, output_ended=True)]
            tail = [item async for item in client.stream(job.id, tail_lines=1) if getattr(item, "data", b"")]
            assert [item.data for item in tail if isinstance(item, Chunk)] == [b"err\n"]
            lines = [item async for item in client.stream(job.id, output_format=OutputFormat.TEXT, compress=True)]
            assert b"".join(item.data for item in lines if isinstance(item, Lines)) == b"out\nerr\n"

    asyncio.run(read())


def test_ends_and_changes(agent: Agent) -> None:
    async def wait() -> None:
        async with aio.connect(endpoint(agent)) as client:
            jobs = [await client.start(JobSpec("sh", ("-c", f"sleep 0.{code}; exit {code}"))) for code in (3, 1)]
            ended = await client.wait([job.id for job in jobs])
            assert sorted(job.exit_code for job in ended) == [1, 3]
            assert await client.wait([]) == []
            assert len(await client.wait([job.id for job in jobs], first=True)) == 1
            with pytest.raises(JobNotFound):
                await client.wait(["0000-0000-0000-0000"])
            endless = await client.start(SLEEP)
            with pytest.raises(WaitTimedOut, match=endless.id):
                await client.wait([endless.id], timeout=0.3)
            with pytest.raises(WaitTimedOut) as caught:
                await client.wait_idle(timeout=5.0)
            assert endless.id in caught.value.job_ids
            async with aclosing(client.until_idle()) as numbers:
                assert await anext(numbers) >= 1
            async with aclosing(client.watch(job_ids=[endless.id], snapshot=True)) as events:
                first, mark = await anext(events), await anext(events)
                assert isinstance(first, Changed)
                assert (first.job.id, isinstance(mark, Mark)) == (endless.id, True)
                await client.stop(endless.id, force=True)
                await client.delete(endless.id)
                while not isinstance(await anext(events), Removed):
                    pass

    asyncio.run(wait())


def test_its_input(agent: Agent) -> None:
    data = os.urandom(3_000_000)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 100_000):
            await asyncio.sleep(0)
            yield data[at : at + 100_000]

    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError("the disk is gone")

    async def write() -> None:
        async with aio.connect(endpoint(agent)) as client:
            job = await client.start(JobSpec("sha256sum", stdin_open=True))
            written = await client.write_stdin(job.id, pieces())
            assert (written.taken, written.ended) == (len(data), True)
            assert await output(client, job.id) == f"{hashlib.sha256(data).hexdigest()}  -\n".encode()
            job = await client.start(JobSpec("cat", stdin_open=True))
            assert (await client.write_stdin(job.id, [b"one ", b"two "], end=False)).taken == 8
            assert (await client.write_stdin(job.id, [b"three"], offset=8)).ended
            assert await output(client, job.id) == b"one two three"
            job = await client.start(JobSpec("head", ("-c", "5"), stdin_open=True))
            with pytest.raises(CallFailed) as caught:
                await client.write_stdin(job.id, pieces())
            assert caught.value.reason == "STDIN_ENDED"
            job = await client.start(SLEEP)
            before = len(asyncio.all_tasks())
            for _ in range(5):
                with pytest.raises(CallFailed, match="not open"):
                    await client.write_stdin(job.id, [b"x"])
            while len(asyncio.all_tasks()) > before:
                # What such calls have left ends by itself.
                await client.query(job.id)
            await client.stop(job.id, force=True)
            job = await client.start(replace(SLEEP, stdin_open=True))
            with pytest.raises(OSError, match="the disk is gone"):
                await client.write_stdin(job.id, broken())
            # More than is taken of it, by a job that reads nothing: to be given up.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await client.write_stdin(job.id, pieces())
            assert (await client.query(job.id)).stdin_bytes <= 128 * 1024
            await client.stop(job.id, force=True)

    asyncio.run(write())


def test_errors(agent: Agent) -> None:
    async def fail() -> None:
        async with aio.connect(endpoint(agent, "reader")) as client:
            with pytest.raises(CallFailed) as caught:
                await client.start(SLEEP)
            assert (caught.value.code, caught.value.metadata["needed"]) == ("PERMISSION_DENIED", "WRITER")
            with pytest.raises(InvalidField):
                await client.start(JobSpec(""))
            with pytest.raises(JobNotFound):
                await client.resolve("0000")
            assert [job async for job in client.list_jobs(states=[State.PENDING])] == []
        with pytest.raises(CallFailed, match="the connection was closed"):
            await client.query("0000-0000-0000-0000")
        files = endpoint(agent)
        async with aio.connect(replace(files, addr="127.0.0.1:1")) as nobody:
            with pytest.raises(TlsProblem):
                await nobody.reach()
        async with aio.connect(replace(files, ca=files.cert)) as stranger:
            with pytest.raises(TlsProblem):
                await stranger.query("0000-0000-0000-0000")

    asyncio.run(fail())


@pytest.mark.root
def test_streams_and_waits_go_on_whatever_dies(whole: Whole) -> None:
    async def follow() -> None:
        async with aio.connect(whole.endpoint()) as client:
            script = "i=0; while read line; do echo $line; done; exit 5"
            job = await client.start(JobSpec("sh", ("-c", script), stdin_open=True))
            waiting = asyncio.create_task(client.wait([job.id]))
            reading = asyncio.create_task(read(client, job.id))
            link = whole.side.link()

            async def lines() -> AsyncIterator[bytes]:
                nonlocal link
                for n in range(2_000):
                    if n in (400, 1_600):
                        link = await asyncio.to_thread(whole.kill_supervisor, link)
                    if n == 1_000:
                        await asyncio.to_thread(whole.kill_gateway)
                    yield b"%d\n" % n

            await client.write_stdin(job.id, lines())
            assert await reading == b"".join(b"%d\n" % n for n in range(2_000))
            assert [ended.exit_code for ended in await waiting] == [5]

    async def read(client: AsyncClient, job_id: str) -> bytes:
        data = b""
        async for item in client.stream(job_id, follow=True):
            assert not isinstance(item, Gap)
            data += getattr(item, "data", b"")
        return data

    asyncio.run(follow())


@pytest.mark.root
def test_input_that_comes_after_a_break_is_written(whole: Whole) -> None:
    async def write() -> None:
        async with aio.connect(whole.endpoint()) as client:
            job = await client.start(JobSpec("cat", stdin_open=True))

            async def pieces() -> AsyncIterator[bytes]:
                yield b"first\n"
                while (await client.query(job.id)).stdin_bytes < len(b"first\n"):
                    pass
                # All that there was has been taken, and the break finds nothing to be done.
                await asyncio.to_thread(whole.kill_gateway)
                await client.reach()
                yield b"second\n"

            written = await client.write_stdin(job.id, pieces())
            assert (written.taken, written.ended) == (13, True)
            assert await output(client, job.id) == b"first\nsecond\n"

    asyncio.run(write())

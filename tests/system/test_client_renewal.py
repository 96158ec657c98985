"""A client outlives its certificate: what replaces its files in time is used, and streams go on with it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from jobworker.api.v1 import job_pb2
from jobworker.client import Endpoint, aio, connect
from jobworker.client.changes import Changed, Event
from jobworker.client.failures import CallFailed
from jobworker.client.output import Chunk
from jobworker.jobs import JobSpec
from support import certs, processes, scripted
from support.agent import DEADLINE, Agent, running_agent
from support.certs import Recipe
from support.waiting import until

CAT = JobSpec("sh", ("-c", "cat; exit 3"), stdin_open=True)


class User:
    """Whose certificate can be replaced, and is good for nothing then."""

    def __init__(self, agent: Agent, directory: Path) -> None:
        self.agent, self._directory = agent, directory
        self.replace()

    @property
    def endpoint(self) -> Endpoint:
        cert, key = (str(self._directory / f"alice.{kind}") for kind in ("pem", "key"))
        return Endpoint(self.agent.addr, certs.dev_pki().path("ca.pem"), cert, key)

    def replace(self) -> None:
        self._held = certs.make(Recipe(), certs.dev_pki().pair("ca"))
        beside = self._directory / "beside"
        beside.mkdir(exist_ok=True)
        self._held.save(beside, "alice")
        for name in ("alice.key", "alice.pem"):
            (beside / name).rename(self._directory / name)

    def renew(self, streams: int) -> None:
        """Replace it, and wait until so many streams have ended that began with the one before."""
        before = self._held
        self.replace()
        self.revoke(before)
        until(lambda: self.agent.log().count('"code": "UNAUTHENTICATED"'), streams, DEADLINE)

    def revoke(self, held: certs.Pair | None = None) -> None:
        with open(self._directory / "revoked.txt", "a") as file:
            file.write(f"{(held or self._held).certificate.serial_number:x}\n")


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    # The gateway reads it as a user of its own.
    tmp_path.chmod(0o755)
    (tmp_path / "revoked.txt").write_text("ffff\n")
    with running_agent(f"tls: {{revoked: {tmp_path}/revoked.txt}}\nisolation: {{missing: report}}\n") as agent:
        yield User(agent, tmp_path)


def has_ended(event: Event) -> bool:
    return isinstance(event, Changed) and event.job.state == job_pb2.JOB_STATE_ENDED


def test_streams_and_watches_go_on(user: User) -> None:
    with connect(user.endpoint) as client:
        job_id = client.start(CAT).id
        stream, watch = client.stream(job_id, follow=True), client.watch(job_ids=[job_id])
        client.write_stdin(job_id, [b"one\n"], end=False)
        first = next(stream)
        assert isinstance(first, Chunk)
        assert first.data == b"one\n"
        # Its mark tells that it is open.
        next(watch)
        user.renew(streams=2)
        client.write_stdin(job_id, [b"two\n"])
        assert b"".join(item.data for item in stream if isinstance(item, Chunk)) == b"two\n"
        assert any(has_ended(event) for event in watch)
        (job,) = client.wait([job_id])
        assert job.exit_code == 3


def test_streams_and_watches_go_on_in_an_event_loop(user: User) -> None:
    async def follow() -> None:
        async with aio.connect(user.endpoint) as client:
            job_id = (await client.start(CAT)).id
            stream, watch = client.stream(job_id, follow=True), client.watch(job_ids=[job_id])
            async with aclosing(stream), aclosing(watch):
                await client.write_stdin(job_id, [b"one\n"], end=False)
                first = await anext(stream)
                assert isinstance(first, Chunk)
                assert first.data == b"one\n"
                await anext(watch)
                await asyncio.to_thread(user.renew, streams=2)
                await client.write_stdin(job_id, [b"two\n"])
                rest = [item.data async for item in stream if isinstance(item, Chunk)]
                assert b"".join(rest) == b"two\n"
                while not has_ended(await anext(watch)):
                    pass
            (job,) = await client.wait([job_id])
            assert job.exit_code == 3

    asyncio.run(follow())


def test_without_a_new_certificate_a_stream_ends(user: User) -> None:
    with connect(user.endpoint) as client:
        watch = client.watch()
        next(watch)
        user.revoke()
        with pytest.raises(CallFailed, match="revoked") as caught:
            next(watch)
        assert caught.value.code == "UNAUTHENTICATED"


def test_a_command_that_is_run_goes_on(user: User) -> None:
    it = user.endpoint
    flags = ["--addr", it.addr, "--ca", it.ca, "--cert", it.cert, "--key", it.key]
    command, pipe = (
        [scripted.program(), "run", *flags, "--stdin", "-", "--", "sh", "-c", "cat; exit 3"],
        subprocess.PIPE,
    )
    with processes.running(command, stdin=pipe, stdout=pipe, stderr=pipe) as run:
        assert run.stdin
        assert run.stdout
        run.stdin.write(b"one\n")
        assert run.stdout.readline() == b"one\n"
        # Of standard output, of standard error, and of the input that is still open.
        user.renew(streams=3)
        out, err = run.communicate(b"two\n", DEADLINE)
        assert (out, err, run.returncode) == (b"two\n", b"", 3)

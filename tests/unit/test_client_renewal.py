"""What the client does when its files change, against a real server that refuses certificates as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client import Endpoint, aio, connect
from jobworker.client.failures import CallFailed
from jobworker.jobs import JobSpec
from support import certs, scripted
from support.certs import Recipe
from support.waiting import until

ID = "k7f3-9m2q-x4tz-b1cd"
_ESTABLISHED = "01"
Act = Callable[[int], object]


def with_threads(endpoint: Endpoint, calls: int, between: Act) -> None:
    with connect(endpoint) as client:
        for number in range(calls):
            between(number)
            client.start(JobSpec("true"))
        between(calls)


def in_a_loop(endpoint: Endpoint, calls: int, between: Act) -> None:
    async def run() -> None:
        async with aio.connect(endpoint) as client:
            for number in range(calls):
                between(number)
                await client.start(JobSpec("true"))
            between(calls)

    asyncio.run(run())


both = pytest.mark.parametrize("start", [with_threads, in_a_loop])


class Agent:
    """Takes starts, but for those of the first certificates; remembers who has asked."""

    def __init__(self, agent: scripted.ScriptedAgent, directory: Path, *, refuses: int = 0) -> None:
        agent.handlers["Start"] = self._start
        self._port, self._directory, self._refuses = agent.port, directory, refuses
        self.serials: list[bytes] = []
        self.refused: Callable[[], None] = lambda: None
        self.renew()

    def renew(self) -> None:
        certs.make(Recipe(), certs.dev_pki().pair("ca")).save(self._directory, "alice")

    @property
    def key(self) -> Path:
        return self._directory / "alice.key"

    @property
    def endpoint(self) -> Endpoint:
        ca, cert = certs.dev_pki().path("ca.pem"), str(self._directory / "alice.pem")
        return Endpoint(f"127.0.0.1:{self._port}", ca, cert, str(self.key))

    def _start(self, _request: Any, context: Any) -> pb.StartResponse:
        self.serials.append(context.auth_context()["x509_pem_cert"][0])
        if len(self.serials) <= self._refuses:
            self.refused()
            scripted.fail(context, "UNAUTHENTICATED", "UNAUTHENTICATED", "the certificate has expired")
        return pb.StartResponse(job=job_pb2.Job(id=ID))

    @property
    def connections(self) -> int:
        """From here, established."""
        # Of sockets for both kinds of addresses.
        with open("/proc/self/net/tcp6") as file:
            found = [line.split()[2:4] for line in file]
        return sum(remote.endswith(f":{self._port:04X}") and state == _ESTABLISHED for remote, state in found)


@both
def test_a_refused_call_is_made_again_with_what_has_replaced_the_certificate(
    agent: scripted.ScriptedAgent, tmp_path: Path, start: Callable[[Endpoint, int, Act], None]
) -> None:
    it = Agent(agent, tmp_path, refuses=1)
    it.refused = it.renew
    start(it.endpoint, 1, lambda _: None)
    assert len(it.serials) == len(set(it.serials)) == 2


@both
def test_without_another_certificate_it_is_made_once(
    agent: scripted.ScriptedAgent, tmp_path: Path, start: Callable[[Endpoint, int, Act], None]
) -> None:
    it = Agent(agent, tmp_path, refuses=1)
    with pytest.raises(CallFailed, match="the certificate has expired") as caught:
        start(it.endpoint, 1, lambda _: None)
    assert (caught.value.code, len(it.serials)) == ("UNAUTHENTICATED", 1)


@both
def test_each_certificate_is_used_from_the_next_call_on_and_no_connection_is_left(
    agent: scripted.ScriptedAgent, tmp_path: Path, start: Callable[[Endpoint, int, Act], None]
) -> None:
    it = Agent(agent, tmp_path)

    def between(number: int) -> None:
        if number < 3:
            it.renew()
        else:
            until(lambda: it.connections, 1)

    start(it.endpoint, 3, between)
    assert len(set(it.serials)) == 3


@both
def test_files_that_cannot_be_used_leave_what_was_good(
    agent: scripted.ScriptedAgent, tmp_path: Path, start: Callable[[Endpoint, int, Act], None]
) -> None:
    it = Agent(agent, tmp_path)
    whole = it.key.read_bytes()

    def between(number: int) -> None:
        if number == 1:
            # As between the two renames of a renewal with a new key.
            it.renew()
            it.key.write_bytes(certs.dev_pki().pair("reader").key_pem)
        if number == 2:
            it.key.write_bytes(whole)

    start(it.endpoint, 3, between)
    assert it.serials[0] == it.serials[1] != it.serials[2]

"""`worker-client top` over many hosts, whose agents answer as told."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest

from jobworker import client
from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.cli.fleet import top
from jobworker.cli.fleet.outcome import Outcome, Status
from jobworker.cli.fleet.targets import Target
from support import scripted
from support.inventory import Hosts
from support.terminals import terminal

IDS = {"web1": "aaaa-9m2q-x4tz-b1cd", "web2": "bbbb-9m2q-x4tz-b1cd"}
SHORT = ("top", "--interval", "200ms")
# More than there are addresses.
NO_STACK = 1 << 50


class Host:
    """An agent with one job, which uses the more the later it is looked at.

    Attributes:
        released: it answers.
        looks_until_it_hangs: after so many it does not.
        begun: a look at it has.
    """

    def __init__(self, job_id: str, step_ms: int) -> None:
        self.agent = scripted.ScriptedAgent()
        self.released = threading.Event()
        self.released.set()
        self.looks_until_it_hangs = -1
        self.begun: Callable[[], object] = lambda: None
        self._job_id, self._step, self._looks = job_id, step_ms, 0
        info = pb.GetAgentInfoResponse()
        self.agent.handlers.update(
            GetAgentInfo=lambda _request, _context: info, List=self._list, Query=self._query
        )

    def _list(self, _request: Any, _context: grpc.ServicerContext) -> pb.ListResponse:
        self.begun()
        assert self.released.wait(60)
        return pb.ListResponse(jobs=[job_pb2.Job(id=self._job_id)])

    def _query(self, _request: Any, _context: grpc.ServicerContext) -> pb.QueryResponse:
        self._looks += 1
        if self._looks == self.looks_until_it_hangs:
            self.released.clear()
        job = job_pb2.Job(id=self._job_id, state=job_pb2.JOB_STATE_RUNNING, command="work")
        job.usage.cpu_time.FromMilliseconds(self._step * self._looks)
        return pb.QueryResponse(job=job)


class Web:
    """Two hosts; the second one's job uses more."""

    def __init__(self, directory: Path) -> None:
        self.each = {name: Host(job_id, 10 + 90 * (name == "web2")) for name, job_id in IDS.items()}
        addresses = {name: f"localhost:{host.agent.port}" for name, host in self.each.items()}
        self.hosts = Hosts(directory, {**addresses, "gone": "127.0.0.1:1"})

    def looked_at(self) -> list[top.Host]:
        """The two of them, each for looks of this process."""
        connect = partial(client.connect, connect_timeout=5.0)
        return [top.Host(Target(name, host.agent.endpoint()), connect, 100) for name, host in self.each.items()]

    def close(self) -> None:
        for host in self.each.values():
            host.released.set()
            host.agent.close()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    running = Web(tmp_path)
    try:
        yield running
    finally:
        running.close()


def test_all_jobs_are_in_one_table(web: Web) -> None:
    done = web.hosts.cli("--host", "web1", "--host", "web2", *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    _, first, second = (line.split() for line in done.stdout.splitlines())
    assert [first[:2], second[:2]] == [[IDS["web2"], "web2"], [IDS["web1"], "web1"]]


def test_a_host_that_is_gone_is_told_and_decides_the_exit_code(web: Web) -> None:
    done = web.hosts.cli("--group", "web", *SHORT, "--format", "json")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["host"] for event in told if event["type"] == "use"} == {"web1", "web2"}
    results = {event["host"]: event["status"] for event in told if event["type"] == "result"}
    assert results == {"web1": "OK", "web2": "OK", "gone": "UNREACHABLE"}
    assert done.returncode == 3
    assert "3 hosts: 2 ok, 1 unreachable" in done.stderr
    assert "unreachable: gone" in done.stderr


def test_a_host_that_hangs_holds_up_no_other(web: Web) -> None:
    web.each["web1"].released.clear()
    done = web.hosts.cli("--host", "web1", "--host", "web2", "--connect-timeout", "5s", *SHORT)
    _, only = done.stdout.splitlines()
    assert only.split()[1] == "web2"
    assert (done.returncode, "unreachable: web1" in done.stderr) == (3, True)


def test_a_host_that_hangs_gives_up_its_place(web: Web) -> None:
    """There is one, and who hangs is the first one in it."""
    web.each["web1"].released.clear()
    one_place = ("--host", "web1", "--host", "web2", "--forks", "1", "--connect-timeout", "5s")
    done = web.hosts.cli(*one_place, *SHORT, "--once", "--format", "json")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["host"] for event in told if event["type"] == "use"} == {"web2"}
    results = {event["host"]: (event["status"], event["detail"]) for event in told if event["type"] == "result"}
    assert results == {"web1": ("UNREACHABLE", "did not answer in time"), "web2": ("OK", "")}
    assert done.returncode == 3


def test_who_was_late_is_behind_the_others_in_the_next_round(web: Web) -> None:
    order: list[str] = []
    for name, host in web.each.items():
        host.begun = partial(order.append, name)
    first, _ = hosts = web.looked_at()
    web.each["web1"].released.clear()
    with closing(top.FleetLooks(hosts, forks=1, seconds=5)) as looks:
        assert looks.sample().name == "1 host, without web1"
        web.each["web1"].released.set()
        assert first.looking
        first.looking.result(60)
        assert looks.sample().name == "2 hosts"
    assert order == ["web1", "web2", "web2", "web1"]


def test_an_error_that_nobody_has_foreseen_is_its_host_s(web: Web) -> None:
    hosts = web.looked_at()[:1]
    with closing(top.FleetLooks(hosts, forks=1, seconds=60)) as looks:
        assert len(looks.sample().uses) == 1
        before = threading.stack_size(NO_STACK)
        try:
            picture = looks.sample()
        finally:
            threading.stack_size(before)
        assert (picture.name, picture.uses) == ("0 hosts, without web1", ())
        assert looks.outcomes() == [Outcome("web1", Status.FAILED, "RuntimeError", "can't start new thread")]


def test_one_within_a_look_is_as_well(web: Web) -> None:
    def connect(_endpoint: object) -> NoReturn:
        raise MemoryError("no more")

    host = top.Host(Target("web1", web.each["web1"].agent.endpoint()), connect, 100)
    looks = top.FleetLooks([host], forks=1, seconds=60)
    assert looks.sample().name == "0 hosts, without web1"
    assert looks.outcomes() == [Outcome("web1", Status.FAILED, "MemoryError", "no more")]


def test_a_host_whose_second_look_is_late_has_not_answered(web: Web) -> None:
    web.each["web1"].looks_until_it_hangs = 1
    done = web.hosts.cli(
        "--host", "web1", "--host", "web2", "--connect-timeout", "5s", *SHORT, "--once", "--format", "json"
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["host"] for event in told if event["type"] == "use"} == {"web2"}
    results = {event["host"]: (event["status"], event["detail"]) for event in told if event["type"] == "result"}
    assert results == {"web1": ("UNREACHABLE", "did not answer in time"), "web2": ("OK", "")}
    assert (done.returncode, "unreachable: web1" in done.stderr) == (3, True)


def test_a_host_that_is_silent_does_not_keep_it_from_ending(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.settimeout(60)
        hosts = Hosts(tmp_path, {"silent": f"127.0.0.1:{silent.getsockname()[1]}"})
        with terminal(hosts.command("--group", "web", "--connect-timeout", "1h", *SHORT)) as it:
            it.wait_for("without silent")
            silent.listen()
            # A look at it has begun, and has no end.
            connection, _ = silent.accept()
            with connection:
                it.type(b"q")
                assert it.end() == 3


def test_on_a_terminal_it_tells_who_is_missing_and_shows_who_comes_back(web: Web) -> None:
    web.each["web1"].released.clear()
    command = web.hosts.command("--host", "web1", "--host", "web2", "--connect-timeout", "5s", *SHORT)
    with terminal(command) as it:
        it.wait_for("1 host, without web1: 1 jobs, by cpu")
        web.each["web1"].released.set()
        it.wait_for("2 hosts: 2 jobs, by cpu")
        it.wait_for("web1")
        it.type(b"q")
        assert it.end() == 0

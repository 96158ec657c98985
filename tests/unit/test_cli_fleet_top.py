"""`worker-client top` over many hosts, whose agents answer as told."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import scripted
from support.inventory import Hosts
from support.terminals import terminal

IDS = {"web1": "aaaa-9m2q-x4tz-b1cd", "web2": "bbbb-9m2q-x4tz-b1cd"}
SHORT = ("top", "--interval", "200ms")


class Host:
    """An agent with one job, which uses the more the later it is looked at.

    Attributes:
        released: it answers.
        looks_until_it_hangs: after so many it does not.
    """

    def __init__(self, job_id: str, step_ms: int) -> None:
        self.agent = scripted.ScriptedAgent()
        self.released = threading.Event()
        self.released.set()
        self.looks_until_it_hangs = -1
        self._job_id, self._step, self._looks = job_id, step_ms, 0
        info = pb.GetAgentInfoResponse()
        self.agent.handlers.update(
            GetAgentInfo=lambda _request, _context: info, List=self._list, Query=self._query
        )

    def _list(self, _request: Any, _context: grpc.ServicerContext) -> pb.ListResponse:
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

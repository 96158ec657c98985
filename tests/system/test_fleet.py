"""worker-client on hosts with whole agents, on some that are not well, and on a hundred."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import certs, processes, scripted
from support.agent import DEADLINE, Agent, running_agent
from support.inventory import Hosts, told
from support.ports import closed_address
from support.scripted_hosts import OUT, Host


@pytest.fixture(scope="module")
def second() -> Iterator[Agent]:
    with running_agent() as running:
        yield running


@pytest.fixture
def hosts(agent: Agent, second: Agent, tmp_path: Path) -> Hosts:
    return Hosts(tmp_path, {"one": agent.addr, "two": second.addr})


@pytest.fixture
def sick(agent: Agent, second: Agent, tmp_path: Path) -> Iterator[Hosts]:
    """Two agents that are well; one host that hangs, one that refuses, one that is not who it should be, and one
    whose certificate is of nobody known.
    """
    stranger = certs.make(certs.Recipe(hosts=("127.0.0.1",), usage=certs.SERVER_AUTH), certs.foreign_ca())
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        closed_address() as closed,
        scripted.scripted_agent(stranger) as foreign,
    ):
        addresses = {
            "one": agent.addr,
            "hangs": f"127.0.0.1:{silent.getsockname()[1]}",
            "refuses": closed,
            "foreign": foreign.endpoint().addr,
            "another": agent.addr,
            "two": second.addr,
        }
        hosts = Hosts(tmp_path, addresses)
        inventory = json.loads(hosts.path.read_text())
        inventory["_meta"]["hostvars"]["another"]["agent_server_name"] = "another.example.org"
        hosts.write(inventory)
        yield hosts


def test_each_host_costs_its_own_line(sick: Hosts) -> None:
    words = ("--group", "web", "--connect-timeout", "5s", "run", "--", "sh", "-c", "echo hello; id -u >&2")
    done = sick.cli(*words)
    assert done.returncode == 3, done.stderr
    assert sorted(done.stdout.splitlines()) == ["one: hello", "two: hello"]
    for line in (
        "worker-client: refuses: nobody listens at 127.0.0.1:",
        "worker-client: foreign: the server certificate of 127.0.0.1:",
        "worker-client: another: the server certificate of 127.0.0.1:",
        "worker-client: hangs: ",
        "worker-client: 6 hosts: 2 ok, 4 unreachable",
    ):
        assert sum(each.startswith(line) for each in done.stderr.splitlines()) == 1, done.stderr


@pytest.fixture
def hundred(tmp_path: Path) -> Iterator[Hosts]:
    """One host that hangs, one that refuses, and 98 with agents of their own, whose jobs say hello."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        closed_address() as closed,
        contextlib.ExitStack() as agents,
    ):
        addresses = {"hangs": f"127.0.0.1:{silent.getsockname()[1]}", "refuses": closed}
        for number in range(98):
            host = Host("k7f3-9m2q-x4tz-b1cd")
            agents.callback(host.agent.close)
            host.output = [(OUT, b"hello\n")]
            addresses[f"web{number:02}"] = host.agent.endpoint().addr
        yield Hosts(tmp_path, addresses)


def test_two_of_a_hundred_hosts_cost_their_own_lines(hundred: Hosts) -> None:
    done = hundred.cli("--group", "web", "--forks", "20", "run", "--", "echo", "hello")
    assert done.returncode == 3, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"web{number:02}: hello" for number in range(98)]
    *said, counts, unreachable = done.stderr.splitlines()
    assert counts == "worker-client: 100 hosts: 98 ok, 2 unreachable"
    assert sorted(unreachable.removeprefix("worker-client:   unreachable: ").split()) == ["hangs", "refuses"]
    hangs, refuses = sorted(said)
    assert hangs.startswith("worker-client: hangs: 127.0.0.1:")
    assert refuses.startswith("worker-client: refuses: nobody listens at 127.0.0.1:")


def test_output_comes_as_lines_with_their_sources(hosts: Hosts) -> None:
    done = hosts.cli("--group", "web", "--format", "json", "run", "--", "sh", "-c", "echo a; printf '\\377' >&2")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    found = {
        (event["host"], event["source"], event.get("text"), event.get("base64"))
        for event in events
        if event["type"] == "line"
    }
    assert found == {
        each for name in ("one", "two") for each in ((name, "STDOUT", "a", None), (name, "STDERR", None, "/w=="))
    }


def test_why_is_told_to_programs(sick: Hosts) -> None:
    done = sick.cli("--group", "web", "--connect-timeout", "5s", "--format", "json", "info")
    results = told(done)
    assert {name: result["status"] for name, result in results.items()} == {
        "one": "OK",
        "two": "OK",
        **dict.fromkeys(("hangs", "refuses", "foreign", "another"), "UNREACHABLE"),
    }
    for name, words in (
        ("hangs", "not answer"),
        ("refuses", "nobody listens"),
        ("foreign", "which is not the CA in"),
        ("another", "not for another.example.org"),
    ):
        assert words in results[name]["detail"]


def test_one_that_hangs_holds_up_no_other(sick: Hosts) -> None:
    """With one at a time all the others would come behind it; with two there is one thread left for them."""
    command = sick.command("--limit", "hangs:one:two", "--forks", "2", "--connect-timeout", "1h", "start", "true")
    with processes.running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert {process.stdout.readline().split(b":")[0] for _ in range(2)} == {b"one", b"two"}
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert b"Ctrl-C again leaves" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert b"3 hosts: 2 ok, 1 left before the end" in said


def test_jobs_that_fail_are_told_from_hosts_that_do(sick: Hosts) -> None:
    script = 'test "$WHERE" = here && exit 7; exec no-such-program'
    done = sick.cli("--host", "one", "--host", "refuses", "run", "--env", "WHERE=here", "--", "sh", "-c", script)
    assert done.returncode == 1
    assert "2 hosts: 1 failed, 1 unreachable" in done.stderr
    assert "worker-client:   failed, EXITED 7: one" in done.stderr
    missing = sick.cli("--host", "one", "run", "--format", "json", "no-such-program")
    assert (missing.returncode, told(missing)["one"]["reason"]) == (1, "START_FAILED")


def test_jobs_are_started_listed_and_stopped_everywhere(hosts: Hosts, agent: Agent, second: Agent) -> None:
    started = hosts.cli("--group", "web", "start", "--label", "round=1", "sleep", "1000")
    ids = dict(line.split(": ") for line in started.stdout.splitlines())
    assert ids.keys() == {"one", "two"}
    for _ in range(2):
        assert hosts.cli("--host", "one", "start", "--label", "round=2", "sleep", "1000").returncode == 0
    listed = hosts.cli("--group", "web", "list", "--label", "round=1")
    assert sorted(line.split()[1] for line in listed.stdout.splitlines()) == sorted(ids.values())
    found = hosts.cli("--group", "web", "query", ids["two"])
    assert found.returncode == 0
    assert f"two: id           {ids['two']}" in found.stdout
    stopped = hosts.cli("--group", "web", "stop", "--label", "round=1")
    assert sorted(stopped.stdout.splitlines()) == [f"{name}: {ids[name]}  STOPPED" for name in ("one", "two")]
    both = hosts.cli("--group", "web", "stop", "--label", "round=2")
    assert both.stdout.count("STOPPED") == 2
    assert "2 hosts: 1 ok, 1 without such a job" in both.stderr
    assert hosts.cli("--group", "web", "stop", "--label", "round=2").returncode == 1
    assert {agent.query(ids["one"])["end_reason"], second.query(ids["two"])["end_reason"]} == {"STOPPED"}


def test_a_drained_host_takes_no_jobs_and_the_others_do(hosts: Hosts) -> None:
    try:
        assert hosts.cli("--host", "two", "drain", "--wait", "--timeout", "30s").returncode == 0
        done = hosts.cli("--group", "web", "run", "--", "echo", "hello")
        assert (done.returncode, done.stdout) == (1, "one: hello\n")
        assert "failed, AGENT_DRAINING: two" in done.stderr
    finally:
        assert hosts.cli("--group", "web", "undrain").returncode == 0


def test_ctrl_c_stops_real_jobs(hosts: Hosts, agent: Agent, second: Agent) -> None:
    script = "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.05; done"
    command = hosts.command("--group", "web", "run", "--label", "test=ctrl-c", "--", "sh", "-c", script)
    with processes.running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert {process.stdout.readline() for _ in range(2)} == {b"one: up\n", b"two: up\n"}
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=DEADLINE)
    assert (process.returncode, sorted(out.splitlines())) == (130, [b"one: bye", b"two: bye"])
    for each in (agent, second):
        assert job_of(each, "test=ctrl-c")["end_reason"] == "STOPPED"


def job_of(agent: Agent, label: str) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(agent.cli("list", "--label", label, "--format", "json", check=True).stdout)
    return job


def test_output_goes_on_where_a_connection_breaks(agent: Agent, second: Agent, tmp_path: Path) -> None:
    # More than fits through a few connections, each of which takes a chunk or two.
    count = 300_000
    port = int(agent.addr.rpartition(":")[2])
    with scripted.breaking_wire(port, itertools.cycle((400_000, 300_000))) as wire:
        hosts = Hosts(tmp_path, {"one": f"127.0.0.1:{wire.port}", "two": second.addr})
        done = hosts.cli("--group", "web", "run", "seq", str(count))
    assert done.returncode == 0, done.stderr
    for name in ("one", "two"):
        lines = [line for line in done.stdout.splitlines() if line.startswith(name)]
        assert lines == [f"{name}: {number}" for number in range(1, count + 1)]
    assert wire.connections > 3

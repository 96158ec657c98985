"""worker-client on many hosts, whose agents answer as told."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.cli import client_options
from jobworker.cli.fleet.actions import ACTIONS
from support import scripted
from support.inventory import told
from support.scripted_hosts import ENDED, ERR, IDS, OUT, Web, scripted_web
from support.terminals import on_a_terminal
from support.unblocking import output_read_late


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with scripted_web(tmp_path) as hosts:
        yield hosts


def lines(text: str, host: str) -> list[str]:
    return [line.removeprefix(f"{host}: ") for line in text.splitlines() if line.startswith(f"{host}: ")]


def test_run_brings_whole_lines_of_every_host_in_order(web: Web) -> None:
    web.each["web1"].output = [(OUT, b"a"), (ERR, b"x\n"), (OUT, b"b\nc\n"), (OUT, b"rest")]
    web.each["web2"].output = [(OUT, b"1\n2\n")]
    done = web.cli("--group", "web", "run", "sleep", "9")
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout, "web1") == ["ab", "c", "rest"]
    assert lines(done.stdout, "web2") == ["1", "2"]
    assert done.stdout.count("\n") == 5
    assert lines(done.stderr, "web1") == ["x"]
    assert done.stderr.splitlines()[-1] == "worker-client: 2 hosts: 2 ok"


def test_bytes_are_the_job_s_where_nobody_looks(web: Web) -> None:
    web.each["web1"].output = [(OUT, b"\xff\x1b[2J\r\n")]
    done = subprocess.run(web.command("--host", "web1", "run", "x"), capture_output=True, check=True, timeout=60)
    assert done.stdout == b"web1: \xff\x1b[2J\r\n"


def test_no_output_is_lost_where_it_does_not_block(web: Web) -> None:
    web.each["web1"].output = [(OUT, b"x" * 1023 + b"\n")] * 1000
    code, written = output_read_late(web.command("--host", "web1", "run", "x"))
    assert (code, written) == (0, (b"web1: " + b"x" * 1023 + b"\n") * 1000)


def test_a_line_without_an_end_is_not_kept_for_ever(web: Web) -> None:
    web.each["web1"].output = [(OUT, b"x" * 50_000)] * 10
    done = web.cli("--host", "web1", "run", "x")
    assert done.stdout.count("\n") == 5
    assert done.stdout.count("x") == 500_000


def test_a_host_that_fails_is_told_and_gathered(web: Web) -> None:
    web.each["web2"].end.exit_code = 3
    done = web.cli("--group", "web", "run", "false")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "worker-client: web2: EXITED 3",
        "worker-client: 2 hosts: 1 ok, 1 failed",
        "worker-client:   failed, EXITED 3: web2",
    ]


def test_a_job_whose_host_is_lost_is_named_and_nobody_is_told_to_start_it_again(web: Web) -> None:
    def lost(_request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "gone")

    web.each["web2"].agent.handlers["Stream"] = lost
    done = web.cli("--group", "web", "run", "true")
    assert done.returncode == 1
    assert f"web2: job {IDS['web2']} may go on; `worker-client query {IDS['web2']}` tells how it is" in done.stderr
    assert "  failed, connection lost: web2" in done.stderr


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("Start", ("start", "true")),
        ("Start", ("run", "true")),
        ("Stop", ("stop", "--label", "a=b")),
        ("Drain", ("drain",)),
    ],
)
def test_what_may_be_done_on_a_host_is_not_told_as_one_that_was_not_reached(
    web: Web, method: str, args: tuple[str, ...]
) -> None:
    def lost(_request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "gone")

    web.each["web2"].agent.handlers[method] = lost
    done = web.cli("--group", "web", *args)
    assert done.returncode == 1, done.stderr
    assert "  failed, connection lost: web2" in done.stderr


def test_a_job_whose_record_is_removed_meanwhile_has_not_gone_well(web: Web) -> None:
    def removed(_request: Any, context: grpc.ServicerContext) -> Any:
        scripted.fail(context, "NOT_FOUND", "JOB_NOT_FOUND", "no such job")

    web.each["web2"].agent.handlers["Watch"] = removed
    done = web.cli("--group", "web", "run", "true")
    assert done.returncode == 1, done.stderr
    assert "worker-client: 2 hosts: 1 ok, 1 failed" in done.stderr
    assert "  failed, its end was not seen: web2" in done.stderr
    assert "may go on" not in done.stderr


def test_json_is_an_object_for_each_event(web: Web) -> None:
    line = {"type": "line", "offset": 0, "end": 3, "source": "STDERR", "text": "no"}
    web.each["web1"].output = [(OUT, json.dumps(line).encode() + b"\n")]
    web.each["web2"].end.exit_code = 3
    done = web.cli("--group", "web", "run", "--format", "json", "x")
    assert done.returncode == 1
    events = [json.loads(line) for line in done.stdout.splitlines()]
    mine = [event for event in events if event["host"] == "web1"]
    assert [event["type"] for event in mine] == ["job", "line", "end", "job", "result"]
    assert mine[1] == {"host": "web1", **line}
    assert [event["job"]["state"] for event in mine if event["type"] == "job"] == ["RUNNING", "ENDED"]
    assert {name: (result["status"], result["reason"]) for name, result in told(done).items()} == {
        "web1": ("OK", ""),
        "web2": ("FAILED", "EXITED 3"),
    }


@pytest.mark.parametrize("line", [b"\xff\n", b"[1]\n", b'{"a":\n', b"[" * 100_000 + b"\n"])
def test_what_is_no_json_costs_its_own_host_alone(web: Web, line: bytes) -> None:
    web.each["web1"].output = [(OUT, line)]
    done = web.cli("--group", "web", "run", "--format", "json", "x")
    assert (done.returncode, b"Traceback" in done.stderr.encode()) == (1, False)
    assert {name: result["status"] for name, result in told(done).items()} == {"web1": "FAILED", "web2": "OK"}


def test_an_agent_cannot_pass_for_another_host(web: Web) -> None:
    web.each["web1"].output = [(OUT, b'{"type":"line","host":"web2"}\n')]
    events = [
        json.loads(line) for line in web.cli("--group", "web", "run", "--format", "json", "x").stdout.splitlines()
    ]
    assert [event["host"] for event in events if event["type"] == "line"] == ["web1"]


def test_groups_and_hosts_before_the_command_and_behind_it_are_all_meant(web: Web) -> None:
    groups = {"front": {"hosts": ["web1"]}, "back": {"hosts": ["web2"]}}
    web.write({**json.loads(web.path.read_text()), **groups})
    for flags in (("--host", "web1", "info", "--host", "web2"), ("--group", "front", "info", "--group", "back")):
        done = web.cli(*flags, "--format", "json")
        assert told(done).keys() == IDS.keys(), done.stderr


def test_start_prints_ids(web: Web) -> None:
    done = web.cli("--group", "web", "start", "--label", "x=y", "--", "sleep", "9")
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [f"web1: {IDS['web1']}", f"web2: {IDS['web2']}"]
    (request,) = web.each["web2"].asked(pb.StartRequest)
    assert (request.command, dict(request.labels)) == ("sleep", {"x": "y"})


def test_every_host_s_job_reads_the_same(web: Web) -> None:
    assert web.cli("--group", "web", "start", "--stdin", "-", "cat", input="hello").returncode == 0
    assert [host.asked(pb.StartRequest)[0].stdin for host in web.each.values()] == [b"hello"] * 2


def test_an_id_is_looked_for_on_every_host(web: Web) -> None:
    done = web.cli("--group", "web", "query", "95hh", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert {name: result["status"] for name, result in told(done).items()} == {"web1": "WITHOUT", "web2": "OK"}
    assert "2 hosts: 1 ok, 1 without such a job" in done.stderr
    assert web.cli("--group", "web", "query", "0000").returncode == 1


def test_jobs_are_stopped_by_their_label(web: Web) -> None:
    done = web.cli("--group", "web", "stop", "--label", "deploy=7", "--grace", "1s")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"{name}: {job_id}  STOPPED" for name, job_id in IDS.items()]
    (listed,) = web.each["web1"].asked(pb.ListRequest)
    assert dict(listed.labels) == {"deploy": "7"}
    assert ENDED not in listed.states
    (stopped,) = web.each["web1"].asked(pb.StopRequest)
    assert stopped.grace.ToMilliseconds() == 1000


def test_a_job_that_cannot_be_stopped_saves_no_other(web: Web) -> None:
    ids = ("95hh-fhpe-mbrk-zk8a", "95hh-fhpe-mbrk-zk8b", IDS["web2"])

    def stop(request: pb.StopRequest, context: grpc.ServicerContext) -> pb.StopResponse:
        if request.job_id == ids[0]:
            scripted.fail(context, "NOT_FOUND", "JOB_NOT_FOUND", "was removed")
        if request.job_id == ids[1]:
            scripted.fail(context, "PERMISSION_DENIED", "POLICY_DENIED", "not this one")
        return web.each["web2"].stop(request, context)

    listed = pb.ListResponse(jobs=[job_pb2.Job(id=job_id) for job_id in ids])
    web.each["web2"].agent.handlers.update(Stop=stop, List=lambda _request, _context: listed)
    done = web.cli("--group", "web", "stop", "--label", "deploy=7")
    assert sorted(done.stdout.splitlines()) == [f"{name}: {job_id}  STOPPED" for name, job_id in IDS.items()]
    assert (done.returncode, "  failed, POLICY_DENIED: web2" in done.stderr) == (1, True)


def test_the_other_commands_tell_a_line_each(web: Web) -> None:
    assert lines(web.cli("--group", "web", "info").stdout, "web2") == ["1.2.3  Linux 6.1  cgroups v2  0 of 9 jobs"]
    assert lines(web.cli("--group", "web", "undrain").stdout, "web1") == ["new jobs are taken"]
    for command in (("list", "--limit", "5"), ("drain",)):
        (line,) = lines(web.cli("--group", "web", *command).stdout, "web1")
        assert line.startswith(f"{IDS['web1']}  RUNNING")


def test_a_host_whose_files_are_not_in_force_has_failed(web: Web) -> None:
    web.each["web2"].stale = [pb.StaleFile(what="policy", problem="line 3: no")]
    told = web.cli("--group", "web", "reload")
    assert (told.returncode, lines(told.stdout, "web1")) == (1, ["certificates: in force", "policy: in force"])
    assert lines(told.stdout, "web2")[1] == "policy: not in force, but what was good before it: line 3: no"
    assert "policy not in force" in told.stderr


def by_environment(web: Web, *args: str) -> subprocess.CompletedProcess[str]:
    """A call that finds the inventory, and one agent besides, in the environment."""
    address = web.each["web2"].agent.endpoint().addr
    environment = {**os.environ, "JOBWORKER_INVENTORY": str(web.path), "JOBWORKER_ADDR": address}
    command = web.command(*args)
    at = command.index("--inventory")
    return subprocess.run(
        command[:at] + command[at + 2 :],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_inventory_s_name_and_limit_can_come_before_the_command(web: Web) -> None:
    done = by_environment(web, "--limit", "web*:!web2", "start", "x")
    assert (done.returncode, done.stdout) == (0, f"web1: {IDS['web1']}\n")


@pytest.mark.parametrize(
    ("args", "told_of"),
    [
        (("list",), "say which hosts of the inventory: --group all for all of them"),
        (("--group", "web", "--addr", "127.0.0.1:1", "list"), "--addr is for one host"),
        (("--group", "web", "list", "--server-name", "x"), "--server-name is for one host"),
        (("--group", "web", "stream", "k7f3"), "`stream` is for one host"),
        (("--group", "wbe", "list"), "--group: 'wbe' is not in the inventory"),
        (("--group", "web", "list", "--inventory", "/no/hosts.yml"), "--inventory: /no/hosts.yml does not exist"),
        (("--group", "web", "list", "--max-fail", "many"), "--max-fail: 'many' is neither"),
        (("--group", "web", "list", "--connect-timeout", "0s"), "--connect-timeout: is no time at all"),
        (("--group", "web", "list", "--forks", "0"), "--forks"),
        (("--group", "web", "start", "--label", "bad key=1", "x"), "'bad key' is not a label's key"),
        (("--group", "web", "stop"), "give the ID of a job, or --label"),
        (("--group", "web", "start", "--cpu", "50", "x"), "--cpu: '50' is not a percentage"),
    ],
)
def test_mistakes_are_told_before_any_host_is_called(web: Web, args: tuple[str, ...], told_of: str) -> None:
    done = web.cli(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("worker-client: ")
    assert told_of in done.stderr
    assert done.stderr.count("\n") == 1
    assert not any(host.agent.requests for host in web.each.values())


def test_what_is_not_understood_is_no_exit_code_of_a_job(web: Web) -> None:
    for words in (("--addr", "127.0.0.1:1"), ("--limit", ","), ("--limit", "")):
        done = web.cli("--group", "web", *words, "run", "true")
        assert (done.returncode, done.stdout) == (125, ""), words
    # No host of many is not the one that is set besides.
    assert by_environment(web, "--limit", "", "run", "true").returncode == 125
    assert not any(host.agent.requests for host in web.each.values())


@pytest.mark.parametrize(("args", "status"), [(("list",), 2), (("top", "--once"), 2), (("run", "true"), 125)])
def test_bad_files_of_one_s_own_are_told_once(
    web: Web, tmp_path: Path, args: tuple[str, ...], status: int
) -> None:
    (tmp_path / "me.key").write_text("no key")
    done = web.cli("--group", "web", "--key", str(tmp_path / "me.key"), *args)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert "no private key" in done.stderr
    missing = web.cli("--group", "web", "--ca", "/no/ca.pem", *args)
    assert (missing.returncode, missing.stderr.count("\n")) == (status, 1)
    assert not any(host.agent.requests for host in web.each.values())


def test_too_many_failures_end_it(web: Web) -> None:
    web.each["web1"].end.exit_code = 1
    done = web.cli("--group", "web", "--forks", "1", "--max-fail", "0", "run", "x")
    assert done.returncode == 1
    assert "more hosts have failed than --max-fail allows: no other one is begun" in done.stderr
    assert "2 hosts: 1 failed, 1 not begun" in done.stderr
    assert not web.each["web2"].agent.requests


def test_on_a_terminal_a_line_cannot_pass_for_another_host_s(web: Web) -> None:
    web.each["web1"].output = [(OUT, b"10%\rweb2: fine\x1b[2J \x1b[31mred\r\n")]
    command = web.command("--host", "web1", "run", "x")
    _, plain = on_a_terminal(command, NO_COLOR="1")
    assert plain.startswith(b"web1: 10%\\rweb2: fine\\x1b[2J \x1b[31mred\x1b[0m\r\n")
    _, coloured = on_a_terminal(command)
    assert coloured.startswith(b"\x1b[3")
    assert coloured.partition(b"m")[2].startswith(b"web1:\x1b[0m 10%")


def test_gaps_are_told_with_their_host(web: Web) -> None:
    gap = pb.StreamResponse(gap=pb.OutputGap(offset=0, length=9, reason="disk full"))
    web.each["web1"].agent.handlers["Stream"] = lambda _request, _context: iter([gap, scripted.end(9)])
    done = web.cli("--host", "web1", "run", "x")
    assert "worker-client: web1: output bytes 0 to 8 are missing: disk full" in done.stderr


def test_the_commands_for_many_hosts_are_those_that_take_them() -> None:
    assert (*ACTIONS, "top") == client_options.ON_MANY_HOSTS

"""worker-client as a program, against a real server that answers as told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.cli.worker_client import COMMANDS, cli
from support import certs, scripted
from support.terminals import terminal

ID = "k7f3-9m2q-x4tz-b1cd"
RUNNING = job_pb2.Job(id=ID, state=job_pb2.JOB_STATE_RUNNING, command="sleep", args=["9"])


@pytest.fixture
def agent() -> Iterator[scripted.ScriptedAgent]:
    with scripted.scripted_agent() as running:
        running.handlers["Start"] = lambda _request, _context: pb.StartResponse(job=RUNNING)
        running.handlers["Query"] = lambda _request, _context: pb.QueryResponse(job=RUNNING)
        running.handlers["List"] = lambda _request, _context: pb.ListResponse(jobs=[RUNNING])
        yield running


def test_start_prints_the_id_alone(agent: scripted.ScriptedAgent) -> None:
    done = agent.cli(
        "start", "--cpu", "50%", "--memory", "64M", "--pids", "9", "--timeout", "2m", "--", "ls", "-l"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ID}\n".encode(), b"")
    (request,) = agent.requests
    assert (request.command, list(request.args)) == ("ls", ["-l"])
    assert (request.limits.cpu, request.limits.memory, request.limits.pids) == ("50%", "64M", 9)
    assert request.timeout.seconds == 120


def test_from_the_command_on_everything_is_the_jobs(agent: scripted.ScriptedAgent) -> None:
    assert agent.cli("start", "ls", "-l", "--cpu", "--help", "-h", "--", "x").returncode == 0
    assert list(agent.requests[0].args) == ["-l", "--cpu", "--help", "-h", "--", "x"]
    # Before it, they are ours.
    for name in ("start", "run"):
        assert agent.cli(name, "-h", "ls").stdout == agent.cli(name, "--help").stdout
    assert len(agent.requests) == 1


def test_the_environment_is_the_one_asked_for(agent: scripted.ScriptedAgent) -> None:
    flags = ("--env", "A=1=2", "--env", "COPIED", "--env", "EMPTY=", "--label", "team=build", "--label", "x=")
    done = agent.cli(
        "start",
        *flags,
        "--workdir",
        "/srv",
        "--best-effort",
        "--sandbox",
        "strict",
        "env",
        env={"COPIED": "c", "OTHER": "o"},
    )
    assert done.returncode == 0, done.stderr
    (request,) = agent.requests
    assert dict(request.env) == {"A": "1=2", "COPIED": "c", "EMPTY": ""}
    assert dict(request.labels) == {"team": "build", "x": ""}
    assert (request.workdir, request.best_effort, request.sandbox) == ("/srv", True, "strict")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("start",), b"Missing argument"),
        (("start", "--bogus", "ls"), b"No such option"),
        (("start", "--cpu", "50", "ls"), b"--cpu: '50' is not a percentage of one CPU; for example 50%"),
        (
            ("start", "--timeout", "0s", "ls"),
            b"--timeout: is no time at all; leave it out for none; for example 30s",
        ),
        (("start", "--memory", "-1M", "ls"), b"--memory: '-1M' is not a size; for example 256M"),
        (("start", "--timeout", "soon", "ls"), b"--timeout: 'soon' is not a duration"),
        (("start", "--env", "NOT_SET", "ls"), b"--env: 'NOT_SET' is not set here"),
        (("start", "--label", "x", "ls"), b"--label: 'x' is not KEY=VALUE"),
        (
            ("start", "ls", b"a", b"\xff"),
            b"argument 2 holds bytes that are not UTF-8, and a request carries text; put them into a file\n",
        ),
        (("start", b"\xff"), b"command: holds bytes that are not UTF-8"),
        (
            ("list", "--principal", b"\xff"),
            b"principal: holds bytes that are not UTF-8, and a request carries text\n",
        ),
        (("start", "--user", b"\xff", "true"), b"user: "),
        (("list", "--label", b"team=\xff"), b"labels[team]: holds bytes that are not UTF-8"),
        (("watch", "--label", b"team=\xff"), b"labels[team]: holds bytes that are not UTF-8"),
        (("watch", "--resume", b"\xff"), b"resume_token: holds bytes that are not UTF-8"),
        (("query", "../x"), b"job_id: '../x' is not the beginning of a job id"),
        (("stop",), b"give the ID of a job, or --label"),
        (("stop", ID, "--label", "a=b"), b"give the ID of a job, or --label"),
        (("stop", ID, "--grace", "9h"), b"grace: is not between 0 and 3600 s"),
        (("stream", ID, "--offset", "-1"), b"--offset"),
        (("stream", ID, "--tail", "-1"), b"--tail"),
        (
            ("stream", ID, "--since", "yesterday"),
            b"--since: 'yesterday' is neither a time with its zone nor a duration",
        ),
        (
            ("stream", ID, "--until", "2026-01-31T08:00:00"),
            b"--until: '2026-01-31T08:00:00' is neither a time with its zone",
        ),
        (("list", "--state", "asleep"), b"--state"),
        (("watch", "--state", "lost"), b"--state"),
        (("stream", ID, "--tail", "99999999999"), b"--tail"),
        (("stream", ID, "--offset", "99999999999999999999"), b"--offset"),
        (("--context", "nope", "query", ID), b"does not exist"),
        (("--addr", "nowhere", "query", ID), b"addr: 'nowhere' is not HOST:PORT"),
        (("--format", "xml", "query", ID), b"--format"),
        (("bogus",), b"No such command"),
    ],
)
def test_what_is_not_understood_is_told_in_one_line(
    agent: scripted.ScriptedAgent, tmp_path: Path, args: tuple[str | bytes, ...], told: bytes
) -> None:
    done = agent.cli(*args, env={"XDG_CONFIG_HOME": str(tmp_path)})
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"worker-client: ")
    assert told in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert not agent.requests


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("INVALID_ARGUMENT", 2),
        ("PERMISSION_DENIED", 4),
        ("UNAUTHENTICATED", 4),
        ("NOT_FOUND", 1),
        ("FAILED_PRECONDITION", 1),
        ("RESOURCE_EXHAUSTED", 1),
        ("INTERNAL", 1),
    ],
)
def test_what_the_agent_refuses_is_told_in_one_line(
    agent: scripted.ScriptedAgent, code: str, exit_code: int
) -> None:
    def refuse(_request: object, context: grpc.ServicerContext) -> None:
        scripted.fail(context, code, "REASON", "what is wrong\n\x1b[2J")

    agent.handlers["Start"] = refuse
    done = agent.cli("start", "--request-id", "r7", "ls")
    assert (done.returncode, done.stdout) == (exit_code, b"")
    where = b" (request r7)" if code == "INTERNAL" else b""
    assert done.stderr == b"worker-client: what is wrong\\n\\x1b[2J" + where + b"\n"


def test_a_tls_failure_is_explained(agent: scripted.ScriptedAgent) -> None:
    agent.close()
    done = agent.cli("query", ID)
    assert done.returncode == 1
    assert done.stderr.startswith(b"worker-client: nobody listens at 127.0.0.1:")


def test_missing_settings_are_named_in_all_three_ways(agent: scripted.ScriptedAgent, tmp_path: Path) -> None:
    program = agent.command()[0]
    done = subprocess.run(
        [program, "list"], env={"XDG_CONFIG_HOME": str(tmp_path)}, capture_output=True, check=False
    )
    assert done.returncode == 2
    for way in ("--addr", "JOBWORKER_ADDR", f"{tmp_path}/jobworker/config.yaml"):
        assert way.encode() in done.stderr


def test_settings_come_from_environment_and_context(agent: scripted.ScriptedAgent, tmp_path: Path) -> None:
    program, it = agent.command()[0], agent.endpoint()
    config = tmp_path / "c.yaml"
    config.write_text(f"contexts: {{here: {{addr: '{it.addr}', ca: {it.ca}, cert: {it.cert}, key: {it.key}}}}}")
    variables = {"JOBWORKER_CONFIG": str(config), "JOBWORKER_ADDR": "127.0.0.1:1"}
    for args in (("--context", "here", "query", ID), ("query", "--context", "here", ID)):
        done = subprocess.run([program, *args], env=variables, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    variables = {
        "JOBWORKER_ADDR": it.addr,
        "JOBWORKER_CA": it.ca,
        "JOBWORKER_CERT": it.cert,
        "JOBWORKER_KEY": it.key,
    }
    assert subprocess.run([program, "query", ID], env=variables, capture_output=True, check=False).returncode == 0
    variables["JOBWORKER_SERVER_NAME"] = "another"
    done = subprocess.run([program, "query", ID], env=variables, capture_output=True, check=False)
    assert (done.returncode, b"another" in done.stderr) == (1, True)


def test_options_behind_the_command_stand_above_those_before(agent: scripted.ScriptedAgent) -> None:
    done = agent.cli("--format", "text", "--addr", "127.0.0.1:1", "query", "--format", "json", ID)
    assert done.returncode == 1
    good = agent.endpoint().addr
    done = agent.cli("--addr", "127.0.0.1:1", "query", ID, "--addr", good, "--format", "json")
    assert json.loads(done.stdout)["id"] == ID


def test_a_proxy_in_the_environment_is_not_used(agent: scripted.ScriptedAgent) -> None:
    proxy = "http://127.0.0.1:1"
    done = agent.cli("query", ID, env={"https_proxy": proxy, "http_proxy": proxy, "grpc_proxy": proxy})
    assert done.returncode == 0, done.stderr


def test_prefixes_serve_wherever_an_id_does(agent: scripted.ScriptedAgent) -> None:
    agent.handlers["Stop"] = lambda _request, _context: pb.StopResponse(job=RUNNING)
    agent.handlers["Stream"] = lambda _request, _context: iter([scripted.end(0)])
    for command in ("query", "stop", "stream"):
        done = agent.cli(command, "k7f3")
        assert done.returncode == 0, done.stderr
        assert agent.requests[-1].job_id == ID
    agent.handlers["List"] = lambda _request, _context: pb.ListResponse(
        jobs=[RUNNING, job_pb2.Job(id=ID[:-1] + "e")]
    )
    done = agent.cli("query", "k7f3")
    assert done.returncode == 2
    assert ID.encode() in done.stderr
    assert ID[:-1].encode() + b"e" in done.stderr
    agent.handlers["List"] = lambda _request, _context: pb.ListResponse()
    assert agent.cli("query", "k7f3").returncode == 1


def test_stop_passes_its_options_on(agent: scripted.ScriptedAgent) -> None:
    stopped = job_pb2.Job(id=ID, state=job_pb2.JOB_STATE_ENDED, end_reason=job_pb2.END_REASON_STOPPED)
    agent.handlers["Stop"] = lambda _request, _context: pb.StopResponse(job=stopped)
    done = agent.cli("stop", ID, "--signal", "INT", "--grace", "1.5s", "--no-wait")
    assert (done.returncode, done.stdout) == (0, f"{ID}  STOPPED\n".encode())
    assert agent.cli("stop", ID, "--force", "--format", "json").stdout.startswith(b'{"id":')
    first, second = agent.requests
    assert (first.signal, first.grace.ToMilliseconds(), first.no_wait, first.force) == ("INT", 1500, True, False)
    assert (second.signal, second.grace.ToMilliseconds(), second.no_wait, second.force) == (
        "",
        10_000,
        False,
        True,
    )


def test_stop_takes_all_active_jobs_with_a_label(agent: scripted.ScriptedAgent) -> None:
    agent.handlers["Stop"] = lambda _request, _context: pb.StopResponse(job=RUNNING)
    assert agent.cli("stop", "--label", "a=b").stdout == f"{ID}  RUNNING\n".encode()
    listed, stopped = agent.requests
    assert dict(listed.labels) == {"a": "b"}
    assert job_pb2.JOB_STATE_ENDED not in listed.states
    assert stopped.job_id == ID
    agent.handlers["List"] = lambda _request, _context: pb.ListResponse()
    none = agent.cli("stop", "--label", "a=b")
    assert (none.returncode, b"no active job has the labels a=b" in none.stderr) == (1, True)


def test_stop_by_label_stops_what_can_be_stopped(agent: scripted.ScriptedAgent) -> None:
    ids = [f"k7f3-9m2q-x4tz-b1c{end}" for end in "abcdef"]
    failures = {
        ids[0]: ("FAILED_PRECONDITION", "JOB_ALREADY_ENDED", "has ended"),
        ids[1]: ("PERMISSION_DENIED", "POLICY_DENIED", "not this one"),
        ids[3]: ("NOT_FOUND", "JOB_NOT_FOUND", "was removed"),
        ids[4]: ("INTERNAL", "INTERNAL", "cannot be killed"),
    }

    def stop(request: pb.StopRequest, context: grpc.ServicerContext) -> pb.StopResponse:
        if request.job_id in failures:
            scripted.fail(context, *failures[request.job_id])
        return pb.StopResponse(job=job_pb2.Job(id=request.job_id, state=job_pb2.JOB_STATE_STOPPING))

    agent.handlers["Stop"] = stop
    agent.handlers["List"] = lambda _request, _context: pb.ListResponse(jobs=[job_pb2.Job(id=id_) for id_ in ids])
    done = agent.cli("stop", "--label", "a=b")
    assert done.stdout.decode().splitlines() == [f"{ids[2]}  STOPPING", f"{ids[5]}  STOPPING"]
    first, last = done.stderr.decode().splitlines()
    assert (first, "cannot be killed" in last) == ("worker-client: not this one", True)
    assert done.returncode == 1


def test_list_passes_its_filters_on_and_prints_a_job_a_line(agent: scripted.ScriptedAgent) -> None:
    flags = ("--state", "running", "--label", "a=b", "--principal", "spiffe://x/user/y")
    for name in ("list", "ps"):
        done = agent.cli(name, *flags, "--format", "json")
        assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [ID]
        request = agent.requests[-1]
        assert list(request.states) == [job_pb2.JOB_STATE_RUNNING]
        assert (dict(request.labels), request.principal) == ({"a": "b"}, "spiffe://x/user/y")
    assert agent.cli("list").stdout.splitlines()[1].startswith(ID.encode())
    refused = agent.cli("list", "--since", "yesterday")
    assert (refused.returncode, b"neither a time with its zone nor a duration" in refused.stderr) == (2, True)


def test_list_stops_at_its_limit(agent: scripted.ScriptedAgent) -> None:
    agent.handlers["List"] = lambda _request, _context: pb.ListResponse(jobs=[RUNNING] * 3, next_page_token="more")
    assert agent.cli("list", "--limit", "5", "--format", "json").stdout.count(b"\n") == 5
    assert len(agent.requests) == 2


def test_info(agent: scripted.ScriptedAgent) -> None:
    agent.handlers["GetAgentInfo"] = lambda _request, _context: pb.GetAgentInfoResponse(version="1.2.3", cpus=2)
    assert b"1.2.3" in agent.cli("info").stdout
    assert json.loads(agent.cli("info", "--format", "json").stdout)["cpus"] == 2


def test_version_needs_no_agent(agent: scripted.ScriptedAgent) -> None:
    agent.close()
    assert agent.cli("version").stdout == b"worker-client 0.1.0\n"
    assert json.loads(agent.cli("version", "--format", "json").stdout) == {"version": "0.1.0"}


def test_help_needs_nothing_but_click() -> None:
    code = (
        "import sys\nfrom jobworker.cli.worker_client import run\nrun(['--help'])\n"
        "heavy = {'grpc', 'google', 'yaml', 'cryptography', 'ssl', 'jobworker.errors', 'jobworker.client'}\n"
        "sys.exit(' '.join(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert "Commands" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_with_an_example(name: str) -> None:
    with cli.make_context("worker-client", [name], resilient_parsing=True) as ctx:
        command = cli.get_command(ctx, name)
        assert command is not None
        assert command.name == name
        told = command.get_help(ctx)
        assert f"worker-client {name}" in told
        assert "--server-name" in told


def test_without_a_command_there_is_help() -> None:
    program = scripted.program()
    bare = subprocess.run([program], capture_output=True, check=False)
    asked = subprocess.run([program, "--help"], capture_output=True, check=False)
    assert (bare.returncode, bare.stdout) == (0, asked.stdout)


def test_a_reader_that_is_gone_ends_it_quietly(agent: scripted.ScriptedAgent) -> None:
    agent.handlers["List"] = lambda _request, _context: pb.ListResponse(
        jobs=[RUNNING] * 100, next_page_token="more"
    )
    reading, writing = os.pipe()
    os.close(reading)
    for args in (("list", "--format", "json"), ("query", ID)):
        done = subprocess.run(
            agent.command(*args), stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (141, b"")
    os.close(writing)


def test_output_that_cannot_be_written_is_told(agent: scripted.ScriptedAgent) -> None:
    agent.handlers["Stream"] = lambda _request, _context: iter([scripted.chunk(0, b"x"), scripted.end(1)])
    for args in (("list",), ("stream", ID)):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                agent.command(*args), stdout=full, stderr=subprocess.PIPE, check=False, timeout=60
            )
        told = b"worker-client: the output cannot be written: No space left on device\n"
        assert (done.returncode, done.stderr) == (1, told)


@pytest.mark.parametrize("closed", ["<&- >&-", ">&-", "<&- >&- 2>&-"])
def test_output_goes_nowhere_rather_than_into_the_connection(agent: scripted.ScriptedAgent, closed: str) -> None:
    over = job_pb2.Job(id=ID, state=job_pb2.JOB_STATE_ENDED, exit_code=0)
    agent.handlers["Watch"] = lambda _request, _context: iter([pb.WatchResponse(job=over)])
    agent.handlers["Stream"] = lambda _request, _context: iter(
        [scripted.chunk(0, b"x" * 9999), scripted.end(9999)]
    )
    for args in (("stream", ID), ("list",), ("run", "x")):
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", *agent.command(*args)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (0, b"")


def test_the_files_for_tls_are_checked_by_name(agent: scripted.ScriptedAgent) -> None:
    other = certs.dev_pki().path("reader.key")
    done = agent.cli("query", ID, "--key", other)
    assert done.returncode == 1
    assert b"does not belong" in done.stderr


def test_each_mistake_of_a_file_has_a_line_of_its_own(agent: scripted.ScriptedAgent) -> None:
    stale = [pb.StaleFile(what="limits", problem="limits.yaml: line 1: no\nlimits.yaml: line 9: neither")]
    agent.handlers["Reload"] = lambda _request, _context: pb.ReloadResponse(
        read=["policy", "limits"], stale_files=stale
    )
    done = agent.cli("reload")
    assert (done.returncode, done.stdout.decode().splitlines()) == (
        1,
        [
            "policy  in force",
            "limits  not in force, but what was good before it:",
            "        limits.yaml: line 1: no",
            "        limits.yaml: line 9: neither",
        ],
    )


def test_a_host_is_not_called_idle_for_what_one_may_not_see(agent: scripted.ScriptedAgent) -> None:
    whole = pb.WatchResponse(mark=pb.WatchMark(snapshot_complete=True), resume_token="a")
    agent.handlers["Drain"] = lambda _request, _context: pb.DrainResponse()
    agent.handlers["Watch"] = lambda _request, _context: iter([whole])
    agent.handlers["GetAgentInfo"] = lambda _request, _context: pb.GetAgentInfoResponse(active_jobs=2)
    done = agent.cli("drain", "--wait")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"2 jobs that you may not see are active" in done.stderr
    assert agent.cli("drain").stdout == b"drained: no job that you may see is active\n"


def test_a_drain_that_has_heard_nothing_in_time_has_timed_out(agent: scripted.ScriptedAgent) -> None:
    told = threading.Event()

    def say_nothing(_request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchResponse]:
        context.add_callback(told.set)
        told.wait(60)
        return iter(())

    agent.handlers["Drain"] = lambda _request, _context: pb.DrainResponse()
    agent.handlers["Watch"] = say_nothing
    done = agent.cli("drain", "--wait", "--timeout", "200ms")
    assert (done.returncode, done.stdout) == (124, b"")
    assert done.stderr == b"worker-client: the agent has not told in time which jobs are active\n"


def test_a_wait_of_no_time_is_none(agent: scripted.ScriptedAgent) -> None:
    done = agent.cli("wait", ID, "--timeout", "0s")
    assert (done.returncode, b"--timeout: must be more than 0" in done.stderr) == (125, True)
    assert not agent.requests


@pytest.mark.parametrize(("jobs", "paged"), [(5, False), (50, True)])
def test_a_list_that_does_not_fit_goes_through_a_pager(
    agent: scripted.ScriptedAgent, tmp_path: Path, jobs: int, *, paged: bool
) -> None:
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho by a pager; cat\n")
    pager.chmod(0o755)
    agent.handlers["List"] = lambda _request, _context: pb.ListResponse(jobs=[RUNNING] * jobs)
    with terminal(agent.command("list"), lines=24, PAGER=str(pager)) as shown:
        assert shown.end() == 0
    assert (b"by a pager" in shown.shown, shown.shown.count(ID.encode())) == (paged, jobs)
    assert b"by a pager" not in agent.cli("list", env={**os.environ, "PAGER": str(pager)}).stdout

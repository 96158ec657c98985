"""The audit trails of a real agent: what is in them, and that nothing keeps them from being whole."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.errors import InvalidField, JobAlreadyEnded, JobNotEnded, JobNotFound, StartFailed
from jobworker.identity import Role
from jobworker.jobs import JobSpec
from jobworker.wire import messages
from jobworker.wire.callers import Caller
from support import certs, gateway, processes
from support.agent import Agent, running_agent
from support.link import CALLER, Link
from support.root_side import RootSide
from support.strace import attached, needs_strace
from support.trails import NASTY, audit, events, names, of, report, wait_for_line, wait_for_stream

pytestmark = pytest.mark.root

SECRET = "hunter2-do-not-tell"
MIB = 1 << 20


def is_call(method: str, **fields: str) -> Callable[[dict[str, Any]], bool]:
    def suits(line: dict[str, Any]) -> bool:
        return (
            line["event"] == "call"
            and line["rpc"].endswith(f"/{method}")
            and all(line.get(name) == value for name, value in fields.items())
        )

    return suits


# Through a whole agent.


def test_a_start_and_a_stop(agent: Agent) -> None:
    job_id = agent.start_job("--env", f"TOKEN={SECRET}", "--", "sh", "-c", "printf 'a\\n'; sleep 1000\n")
    agent.cli("stop", job_id, check=True)
    lines = of(job_id, events(agent.state_dir, "jobs"))
    assert names(lines) == ["job_started", "stop_asked", "job_stopping", "job_ended"]
    started, asked, stopping, ended = lines
    assert {line["by"] for line in lines} == {"supervisor"}
    assert (started["command"], started["args"]) == ("sh", ["-c", "printf 'a\\n'; sleep 1000\n"])
    assert started["env"] == ["TOKEN"]
    assert (started["sandbox"], started["uid"] >= 1000) == ("standard", True)
    for line in (started, asked):
        claimed = line["claimed"]
        assert claimed["principal"] == "spiffe://dev.jobworker.internal/user/writer"
        assert (claimed["role"], claimed["serial"]) == ("WRITER", serial(agent, "writer"))
        assert claimed["peer"].startswith("ipv4:127.0.0.1:")
        assert line["decision"] == "allow"
    assert (asked["signal"], stopping["why"], ended["reason"]) == ("TERM", "STOPPED", "STOPPED")
    assert [line["seq"] for line in lines] == sorted(line["seq"] for line in lines)
    # The gateway's own word of the same call.
    call = wait_for_line(agent.state_dir, "calls", is_call("Start", job=job_id))
    assert (call["by"], call["decision"], call["code"]) == ("gateway", "allow", "OK")
    assert call["call"] == started["claimed"]["call"]


def serial(agent: Agent, name: str) -> str:
    command = ["openssl", "x509", "-noout", "-serial", "-in", os.path.join(agent.pki_dir, f"{name}.pem")]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return said.strip().partition("=")[2].lower().lstrip("0")


def test_a_denial(agent: Agent) -> None:
    assert agent.cli("start", "--", "true", role="reader").returncode
    call = wait_for_line(agent.state_dir, "calls", is_call("Start", role="READER"))
    assert (call["decision"], call["code"]) == ("deny", "PERMISSION_DENIED")
    assert (call["reason"], call["serial"]) == ("PERMISSION_DENIED", serial(agent, "reader"))
    assert call["principal"] == "spiffe://dev.jobworker.internal/user/reader"
    assert call["peer"].startswith("ipv4:127.0.0.1:")


def test_a_start_that_fails_and_one_that_makes_no_sense(agent: Agent) -> None:
    assert agent.cli("start", "--", "/no/such\nprogram").returncode
    failed = wait_for_line(agent.state_dir, "calls", lambda line: line.get("command") == "/no/such\nprogram")
    assert (failed["event"], failed["problem"]) == ("start_failed", "StartFailed")
    # Of what is in a request nothing but the name of the field that is wrong.
    with gateway.channel(agent.addr, certs.DevPki(agent.pki_dir).files("writer")) as channel:
        whole = pb.StartRequest(command="a", workdir=SECRET).SerializeToString()
        for request, field in ((whole, "workdir"), (b"\xff", "request")):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary("/jobworker.api.v1.JobWorkerService/Start", bytes)(request)
            call = wait_for_line(agent.state_dir, "calls", is_call("Start", code="INVALID_ARGUMENT", detail=field))
            assert (call["decision"], call["reason"]) == ("deny", "INVALID_FIELD")


def test_a_stream_is_told_when_it_begins(agent: Agent) -> None:
    job_id = agent.start_job("--", "sleep", "1000")
    with processes.running(agent.command("stream", job_id, "--follow", role="reader")):
        opened = wait_for_stream(agent.state_dir, job=job_id)
    assert (opened["decision"], opened["role"]) == ("allow", "READER")
    ended = wait_for_line(agent.state_dir, "calls", is_call("Stream", job=job_id))
    assert (ended["call"], ended["code"]) == (opened["call"], "CANCELLED")
    agent.cli("stop", job_id, check=True)


def test_values_of_the_environment_and_input_are_nowhere(agent: Agent, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text(SECRET)
    job_id = agent.start_job("--env", f"TOKEN={SECRET}", "--stdin", str(given), "--", "true")
    agent.cli("start", "--env", f"TOKEN={SECRET}", "--stdin", str(given), "--", "/no/such/program")
    # The agent refuses so many, and not already the client.
    last = ("--request-id", "told-last", "--pids", "40000")
    assert agent.cli("start", "--env", f"TOKEN={SECRET}", *last, "--", "true").returncode
    wait_for_line(agent.state_dir, "calls", is_call("Start", job=job_id))
    wait_for_line(agent.state_dir, "calls", is_call("Start", request="told-last"))
    for path in Path(agent.state_dir, "audit").iterdir():
        assert SECRET.encode() not in path.read_bytes()


def test_the_command_line(agent: Agent) -> None:
    job_id = agent.start_job("--", "true")
    wait_for_line(agent.state_dir, "calls", is_call("Start", job=job_id))
    run = audit(agent.state_dir, "verify")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "jobs: whole: lines 1 to" in run.stdout
    anchors = [json.loads(line)["anchor"] for line in agent.log().splitlines() if '"audit anchor"' in line]
    assert {anchor.partition(":")[0] for anchor in anchors} == {"jobs", "calls"}
    given = [part for anchor in anchors for part in ("--anchor", anchor)]
    assert audit(agent.state_dir, "verify", *given).returncode == 0
    trail, seq, known = anchors[0].split(":")
    run = audit(agent.state_dir, "verify", "--anchor", f"{trail}:{seq}:{known[::-1]}")
    assert run.returncode == 1
    assert "is not the one of the anchor" in run.stdout
    assert audit(agent.state_dir, "verify", "--anchor", "7").returncode == 2
    assert audit(agent.pki_dir, "verify").returncode == 4
    shown = audit(agent.state_dir, "show", "--job", job_id, "--format", "json", "--principal", "*/user/writer")
    assert {json.loads(line)["job"] for line in shown.stdout.splitlines()} == {job_id}
    assert {json.loads(line)["by"] for line in shown.stdout.splitlines()} == {"supervisor", "gateway"}
    text = audit(agent.state_dir, "show", "--since", "1h").stdout
    assert "  job_started  spiffe://dev.jobworker.internal/user/writer  " in text
    assert audit(agent.state_dir, "show", "--since", "2999-01-01T00:00:00Z").stdout == ""
    assert audit(agent.state_dir, "show", "--since", "0800-01-01T00:00:00Z").stdout != ""
    assert audit(agent.state_dir, "show", "--since", "yesterday").returncode == 2
    zoneless = audit(agent.state_dir, "show", "--since", "2026-01-31T08:00:00")
    assert (zoneless.returncode, "has no time zone" in zoneless.stderr) == (2, True)


def test_only_root_can_look(agent: Agent) -> None:
    directory = Path(agent.state_dir, "audit")
    assert directory.stat().st_mode & 0o7777 == 0o700
    assert {path.stat().st_mode & 0o7777 for path in directory.iterdir()} == {0o600}
    assert {path.stat().st_uid for path in (directory, *directory.iterdir())} == {0}


def test_a_flood_of_denials_holds_up_nobody() -> None:
    with running_agent() as agent:
        job_id = agent.start_job("--", "sleep", "1000")
        flood = [
            subprocess.Popen(
                ["sh", "-c", 'while :; do "$@"; done', "-", *agent.command("start", "--", "true", role="reader")],
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            for _ in range(4)
        ]
        try:
            wait_for_line(agent.state_dir, "calls", is_call("Start", decision="deny"))
            agent.cli("stop", job_id, check=True)
        finally:
            for process in flood:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert names(of(job_id, events(agent.state_dir, "jobs")))[-1] == "job_ended"
        assert audit(agent.state_dir, "verify").returncode == 0


# The root side alone, and a gateway that was taken over.


def test_a_gateway_can_t_speak_for_the_supervisor(side: RootSide, link: Link) -> None:
    before = len(events(side.state_dir, "calls")), len(events(side.state_dir, "jobs"))
    link.ask(
        messages.ReportCalls((report(), report(event="job_started"), report(event=NASTY, at_ns=2**63 - 1)), 0)
    )
    calls = events(side.state_dir, "calls")[before[0] :]
    assert [(line["by"], line["event"]) for line in calls] == [("gateway", "call")] * 3
    assert len(events(side.state_dir, "jobs")) == before[1]
    assert audit(side.state_dir, "verify").returncode == 0


def test_what_a_gateway_has_done_is_on_record_whatever_it_says(side: RootSide, link: Link) -> None:
    caller = Caller(NASTY, Role.WRITER, "s" * 10_000, "p", "c")
    record = link.ask(messages.StartJob(caller, JobSpec("/bin/sh", ("-c", "exit 0", NASTY[:60])))).record
    link.wait_ended(record.job_id)
    started, ended = of(record.job_id, events(side.state_dir, "jobs"))
    assert (started["by"], started["event"]) == ("supervisor", "job_started")
    assert started["claimed"]["principal"] == NASTY
    assert len(started["claimed"]["serial"]) < 1000
    assert (started["command"], started["uid"], ended["exit_code"]) == ("/bin/sh", record.uid, 0)
    assert started["args"] == ["-c", "exit 0", NASTY[:60]]


def test_signals_deletions_and_drains_are_on_record_with_who_asked(side: RootSide, link: Link) -> None:
    record = link.start("/bin/sleep", "1000")
    link.ask(messages.SignalJob(CALLER, record.job_id, signal.SIGCONT, everyone=True))
    with pytest.raises(JobNotEnded):
        link.ask(messages.DeleteJob(CALLER, record.job_id))
    link.stop(record.job_id, force=True)
    with pytest.raises(JobAlreadyEnded):
        link.ask(messages.SignalJob(CALLER, record.job_id, signal.SIGCONT, everyone=False))
    link.ask(messages.DeleteJob(CALLER, record.job_id))
    for draining in (True, False):
        link.ask(messages.Drain(CALLER, draining=draining))
    told = {line["event"]: line for line in of(record.job_id, events(side.state_dir, "jobs"))}
    assert list(told)[-2:] == ["delete_asked", "job_removed"]
    calls = events(side.state_dir, "calls")
    drains = [line for line in calls if line["event"] in ("drained", "undrained")]
    assert [line["event"] for line in drains] == ["drained", "undrained"]
    signalled, *refused = of(record.job_id, calls)
    assert (signalled["event"], signalled["signal"], signalled["everyone"]) == ("job_signalled", "CONT", True)
    for line in (signalled, told["delete_asked"], *drains):
        assert line["claimed"]["principal"] == CALLER.principal
    assert [(line["event"], line["decision"]) for line in refused] == [
        ("delete_refused", "deny"),
        ("signal_refused", "deny"),
    ]


def test_refusals_of_the_supervisor(side: RootSide, link: Link) -> None:
    with pytest.raises(InvalidField):
        link.ask(messages.StartJob(CALLER, JobSpec("", env=(("TOKEN", SECRET),))))
    with pytest.raises(JobNotFound):
        link.stop("0000-0000-0000-0000")
    with pytest.raises(StartFailed):
        link.start("/no/such/program")
    record = link.start("/bin/true")
    link.wait_ended(record.job_id)
    with pytest.raises(JobAlreadyEnded):
        link.stop(record.job_id)
    refused = [line for line in events(side.state_dir, "calls") if line["event"].endswith("_refused")]
    assert [(line["event"], line["problem"], line["decision"]) for line in refused[-3:]] == [
        ("start_refused", "InvalidField", "deny"),
        ("stop_refused", "JobNotFound", "deny"),
        ("stop_refused", "JobAlreadyEnded", "deny"),
    ]
    assert SECRET not in json.dumps(refused)
    # Nothing was executed, so that it does not make go what was.
    assert "start_failed" in names(events(side.state_dir, "calls"))
    assert "start_failed" not in names(events(side.state_dir, "jobs"))


def test_a_line_has_a_bound_whatever_is_in_it(side: RootSide, link: Link) -> None:
    args = tuple("\U0001f600" * 20 for _ in range(1_000))
    for command, workdir in (("/bin/true", ""), ("/no/such/" + "\U0001f600" * 900, "/" + "\U0001f600" * 900)):
        with contextlib.suppress(StartFailed):
            link.start(command, *args, workdir=workdir)
    lines = Path(side.state_dir, "audit", "calls.log").read_bytes().splitlines()
    lines += Path(side.state_dir, "audit", "jobs.log").read_bytes().splitlines()
    assert 8_000 < max(map(len, lines)) < 24_000


def test_arguments_that_are_too_long_for_a_line(side: RootSide, link: Link) -> None:
    args = ("-c", "exit 0", *(str(number) * 50 for number in range(300)))
    record = link.start("/bin/sh", *args)
    started, *_ = of(record.job_id, events(side.state_dir, "jobs"))
    kept = started["args"]
    assert 2 < len(kept) < len(args)
    assert tuple(kept) == args[: len(kept)]
    data = "\0".join(args).encode()
    digest = subprocess.run(["sha256sum"], input=data, capture_output=True, check=True).stdout.split()[0].decode()
    assert started["args_cut"] == {"of": len(args), "sha256": digest}


def test_a_flood_from_a_gateway_costs_no_line_of_the_supervisor(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/bin/sleep", "1000")
    batch = messages.ReportCalls((report(caller=CALLER),) * messages.MAX_REPORTS, 0)
    waiting = [link.send(batch) for _ in range(3)]
    for _ in range(40):
        waiting.append(link.send(batch))
        link.answer(waiting.pop(0))
    link.stop(record.job_id, force=True)
    link.ask(messages.ReportCalls((), 12_345))
    calls = events(own_side.state_dir, "calls")
    assert calls[-1]["event"] == "calls_dropped"
    assert (calls[-1]["by"], calls[-1]["lines"]) == ("gateway", 12_345)
    assert names(of(record.job_id, events(own_side.state_dir, "jobs")))[-1] == "job_ended"
    assert audit(own_side.state_dir, "verify").returncode == 3
    with pytest.raises(InvalidField):
        link.ask(messages.ReportCalls((report(),) * (messages.MAX_REPORTS + 1), 0))


def test_stops_that_change_nothing_are_calls_like_others(side: RootSide, link: Link) -> None:
    record = link.start("/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
    link.wait_output(record.job_id)
    for _ in range(5):
        link.stop(record.job_id, wait=False)
    link.stop(record.job_id, force=True)
    assert names(of(record.job_id, events(side.state_dir, "jobs"))).count("stop_asked") == 2
    assert names(of(record.job_id, events(side.state_dir, "calls"))).count("stop_asked") == 4


@needs_strace
def test_what_a_job_comes_to_is_on_record_before_anybody_is_told(own_side: RootSide, tmp_path: Path) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/bin/cat", stdin_open=True)
    supervisor, trace = own_side.supervisor_pid(), tmp_path / "trace"
    with attached(supervisor, "-s", "10000", "-e", "trace=write,sendmsg", "-o", str(trace)):
        # Both in one round: the job's end, and what makes this connection ready.
        os.kill(supervisor, signal.SIGSTOP)
        os.kill(record.pid, signal.SIGKILL)
        link.send(messages.InspectJob(record.job_id))
        os.kill(supervisor, signal.SIGCONT)
        link.wait_ended(record.job_id)
    lines = trace.read_text().splitlines()
    (written,) = (i for i, line in enumerate(lines) if line.startswith("write(") and "job_ended" in line)
    told = [i for i, line in enumerate(lines) if line.startswith("sendmsg(") and "ENDED" in line]
    assert written < min(told)

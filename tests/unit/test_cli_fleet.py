"""worker-client on many hosts, whose agents answer as told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
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
from support.inventory import Hosts, told
from support.signals import interruptible

IDS = {"web1": "k7f3-9m2q-x4tz-b1cd", "web2": "95hh-fhpe-mbrk-zk8y"}
OUT, ERR = pb.OUTPUT_SOURCE_STDOUT, pb.OUTPUT_SOURCE_STDERR
ENDED, RUNNING = job_pb2.JOB_STATE_ENDED, job_pb2.JOB_STATE_RUNNING


class Host:
    """An agent with one job, which ends by itself unless it `waits` to be stopped."""

    def __init__(self, name: str) -> None:
        self.agent = scripted.ScriptedAgent()
        self.output: list[tuple[Any, bytes]] = []
        self.stale: list[pb.StaleFile] = []
        self.end = job_pb2.Job(id=IDS[name], state=ENDED, end_reason=job_pb2.END_REASON_EXITED, exit_code=0)
        self.job = job_pb2.Job(id=IDS[name], state=RUNNING, command="sleep", args=["9"])
        self.asked_for, self.following, self.finished, self.watched = (threading.Event() for _ in range(4))
        self.before_output: list[threading.Event] = []
        self.finished.set()
        methods = ("Start", "Stream", "Watch", "Stop", "Query", "Drain", "Undrain", "Reload", "GetAgentInfo")
        self.agent.handlers.update({name: getattr(self, name.lower()) for name in methods}, List=self.listed)

    def waits(self) -> None:
        self.finished.clear()

    def getagentinfo(self, _request: Any, _context: Any) -> pb.GetAgentInfoResponse:
        return pb.GetAgentInfoResponse(version="1.2.3", kernel="6.1", cgroup_mode="v2", max_active_jobs=9)

    def start(self, _request: Any, _context: Any) -> pb.StartResponse:
        return pb.StartResponse(job=self.job)

    def stream(self, request: pb.StreamRequest, context: grpc.ServicerContext) -> Iterator[pb.StreamResponse]:
        assert (request.follow, request.timestamps) == (True, True)
        offset = 0
        self.asked_for.set()
        for event in self.before_output:
            assert event.wait(60)
        for source, data in self.output:
            message = scripted.chunk(offset, data, source)
            offset += len(data)
            if request.format == pb.OUTPUT_FORMAT_JSON:
                message.chunk.resume_offset = offset
            yield message
        self.following.set()
        context.add_callback(self.finished.set)
        assert self.finished.wait(60)
        yield scripted.end(offset)

    def watch(self, _request: Any, _context: Any) -> Iterator[pb.WatchResponse]:
        self.watched.set()
        assert self.finished.wait(60)
        yield pb.WatchResponse(job=self.end)
        yield pb.WatchResponse(mark=pb.WatchMark(snapshot_complete=True), resume_token="a")

    def stop(self, _request: Any, _context: Any) -> pb.StopResponse:
        self.end = job_pb2.Job(id=self.job.id, state=ENDED, end_reason=job_pb2.END_REASON_STOPPED, signal=15)
        self.finished.set()
        return pb.StopResponse(job=self.end)

    def listed(self, request: pb.ListRequest, _context: Any) -> pb.ListResponse:
        return pb.ListResponse(jobs=[self.job] if self.job.id.startswith(request.id_prefix) else [])

    def query(self, _request: Any, _context: Any) -> pb.QueryResponse:
        return pb.QueryResponse(job=self.job)

    def drain(self, _request: Any, _context: Any) -> pb.DrainResponse:
        return pb.DrainResponse(active_job_ids=[self.job.id])

    def undrain(self, _request: Any, _context: Any) -> pb.UndrainResponse:
        return pb.UndrainResponse()

    def reload(self, _request: Any, _context: Any) -> pb.ReloadResponse:
        return pb.ReloadResponse(read=["certificates", "policy"], stale_files=self.stale)

    def asked(self, kind: type[Any]) -> list[Any]:
        return [request for request in self.agent.requests if isinstance(request, kind)]


class Web(Hosts):
    """The hosts web1 and web2."""

    def __init__(self, directory: Path) -> None:
        self.each = {name: Host(name) for name in IDS}
        super().__init__(directory, {name: host.agent.endpoint().addr for name, host in self.each.items()})


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    hosts = Web(tmp_path)
    yield hosts
    for host in hosts.each.values():
        host.agent.close()


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


def test_a_bad_certificate_of_one_s_own_is_told_once(web: Web, tmp_path: Path) -> None:
    (tmp_path / "me.key").write_text("no key")
    done = web.cli("--group", "web", "--key", str(tmp_path / "me.key"), "list")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no private key" in done.stderr


def test_too_many_failures_end_it(web: Web) -> None:
    web.each["web1"].end.exit_code = 1
    done = web.cli("--group", "web", "--forks", "1", "--max-fail", "0", "run", "x")
    assert done.returncode == 1
    assert "more hosts have failed than --max-fail allows: no other one is begun" in done.stderr
    assert "2 hosts: 1 failed, 1 not begun" in done.stderr
    assert not web.each["web2"].agent.requests


@contextlib.contextmanager
def running(web: Web, *args: str, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    with interruptible():
        process = subprocess.Popen(
            web.command("--group", "web", *args), bufsize=0, stdout=stdout, stderr=subprocess.PIPE
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def following(web: Web) -> None:
    for host in web.each.values():
        assert host.following.wait(60)


def test_ctrl_c_stops_the_jobs_of_all_hosts_and_waits_for_them(web: Web) -> None:
    for host in web.each.values():
        host.waits()
    with running(web, "run", "sleep", "9") as process:
        following(web)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"2 hosts: 2 failed" in said
    assert b"failed, STOPPED: web1 web2" in said or b"failed, STOPPED: web2 web1" in said
    assert all(len(host.asked(pb.StopRequest)) == 1 for host in web.each.values())


def test_ctrl_c_does_not_claim_to_stop_what_it_does_not(web: Web) -> None:
    for host in web.each.values():
        host.waits()
    with running(web, "drain", "--wait") as process:
        for host in web.each.values():
            assert host.watched.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert process.stderr.readline() == (
            b"worker-client: no other host is begun; Ctrl-C again leaves without waiting\n"
        )
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert not any(host.asked(pb.StopRequest) for host in web.each.values())


def test_a_second_ctrl_c_leaves_at_once(web: Web) -> None:
    for host in web.each.values():
        host.waits()
        host.agent.handlers["Stop"] = lambda _request, _context: pb.StopResponse()
    with running(web, "run", "sleep", "9") as process:
        following(web)
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert b"Ctrl-C again leaves without waiting" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"2 hosts: 2 left before the end" in said
    for name, job_id in IDS.items():
        assert f"{name}: job {job_id} may go on".encode() in said


def test_ctrl_c_can_leave_the_jobs_running(web: Web) -> None:
    for host in web.each.values():
        host.waits()
    with running(web, "run", "--detach-on-interrupt", "sleep", "9") as process:
        following(web)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert not any(host.asked(pb.StopRequest) for host in web.each.values())


def test_nobody_reading_ends_the_jobs_quietly(web: Web) -> None:
    for host in web.each.values():
        host.waits()
        host.output = [(OUT, b"x\n")]
        # Both jobs are followed by then.
        host.before_output = [each.asked_for for each in web.each.values()]
    reading, writing = os.pipe()
    os.close(reading)
    with running(web, "run", "sleep", "9", stdout=writing) as process:
        os.close(writing)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (141, b"")
    assert all(host.asked(pb.StopRequest) for host in web.each.values())


def test_nobody_reading_ends_a_job_that_is_being_started(web: Web) -> None:
    first, second = web.each.values()
    starting, stopped, answer = (threading.Event() for _ in range(3))

    def start_late(_request: Any, _context: Any) -> pb.StartResponse:
        starting.set()
        assert answer.wait(60)
        return pb.StartResponse(job=second.job)

    def stop_first(request: Any, context: Any) -> pb.StopResponse:
        stopped.set()
        return first.stop(request, context)

    first.waits()
    second.waits()
    first.before_output = [starting]
    first.output = [(OUT, b"x\n")]
    first.agent.handlers["Stop"], second.agent.handlers["Start"] = stop_first, start_late
    reading, writing = os.pipe()
    os.close(reading)
    with running(web, "run", "sleep", "9", stdout=writing) as process:
        os.close(writing)
        assert stopped.wait(60)
        # It does not leave before it knows what to stop.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        answer.set()
        assert process.wait(60) == 141
    assert all(host.asked(pb.StopRequest) for host in web.each.values())


def on_a_terminal(command: list[Any], **variables: str) -> bytes:
    terminal, its_side = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "", **variables}
    with subprocess.Popen(
        command, stdin=its_side, stdout=its_side, stderr=its_side, start_new_session=True, env=environment
    ):
        os.close(its_side)
        shown = b""
        # Linux says EIO when the last process has closed its side.
        with contextlib.suppress(OSError):
            while data := os.read(terminal, 65_536):
                shown += data
        os.close(terminal)
    return shown


def test_on_a_terminal_a_line_cannot_pass_for_another_host_s(web: Web) -> None:
    web.each["web1"].output = [(OUT, b"10%\rweb2: fine\x1b[2J \x1b[31mred\r\n")]
    command = web.command("--host", "web1", "run", "x")
    plain = on_a_terminal(command, NO_COLOR="1")
    assert plain.startswith(b"web1: 10%\\rweb2: fine\\x1b[2J \x1b[31mred\x1b[0m\r\n")
    coloured = on_a_terminal(command)
    assert coloured.startswith(b"\x1b[3")
    assert coloured.partition(b"m")[2].startswith(b"web1:\x1b[0m 10%")


def test_gaps_are_told_with_their_host(web: Web) -> None:
    gap = pb.StreamResponse(gap=pb.OutputGap(offset=0, length=9, reason="disk full"))
    web.each["web1"].agent.handlers["Stream"] = lambda _request, _context: iter([gap, scripted.end(9)])
    done = web.cli("--host", "web1", "run", "x")
    assert "worker-client: web1: output bytes 0 to 8 are missing: disk full" in done.stderr


def test_the_commands_for_many_hosts_are_those_that_take_them() -> None:
    assert (*ACTIONS, "top") == client_options.ON_MANY_HOSTS

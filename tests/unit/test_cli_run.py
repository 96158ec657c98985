"""`worker-client run` and `stream`: bytes, exit codes, Ctrl-C, terminals."""

from __future__ import annotations

import contextlib
import ctypes
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
from jobworker.cli import client_run
from jobworker.cli.client_exit import exit_status, notice_of
from jobworker.cli.client_stdin import Input
from jobworker.client.output import Item
from support import processes, scripted
from support.terminals import on_a_terminal

ID = "k7f3-9m2q-x4tz-b1cd"
BOTH, OUT, ERR = pb.OUTPUT_SOURCE_UNSPECIFIED, pb.OUTPUT_SOURCE_STDOUT, pb.OUTPUT_SOURCE_STDERR
WRITTEN = [(OUT, b"out \xff\x00\x1b[2J\r\n"), (ERR, b"err \xfe\n"), (OUT, b"more")]


def ended(reason: str, **fields: Any) -> job_pb2.Job:
    number = job_pb2.EndReason.Value(f"END_REASON_{reason}")
    return job_pb2.Job(id=ID, state=job_pb2.JOB_STATE_ENDED, end_reason=number, **fields)


class OneJob:
    """An agent with one job, which runs until it is stopped or `finish` is called."""

    def __init__(self, agent: scripted.ScriptedAgent, end: job_pb2.Job, written: list[tuple[Any, bytes]]) -> None:
        self.agent = agent
        self.following, self.stopping, self.finished = (threading.Event() for _ in range(3))
        self.asked_to_stop: list[pb.StopRequest] = []
        self._end, self._written = end, written
        agent.handlers.update(Start=self._start, Stream=self._stream, Watch=self._watch, Stop=self._stop)

    def finish(self) -> None:
        self.finished.set()

    def _start(self, _request: pb.StartRequest, _context: grpc.ServicerContext) -> pb.StartResponse:
        return pb.StartResponse(job=job_pb2.Job(id=ID, state=job_pb2.JOB_STATE_RUNNING))

    def _stream(self, request: pb.StreamRequest, context: grpc.ServicerContext) -> Iterator[pb.StreamResponse]:
        assert request.follow
        offset = 0
        for source, data in self._written:
            if request.source in (BOTH, source):
                yield scripted.chunk(offset, data, request.source)
            offset += len(data)
        self.following.set()
        context.add_callback(self.finished.set)
        assert self.finished.wait(60)
        yield scripted.end(offset)

    def _watch(self, request: pb.WatchRequest, _context: grpc.ServicerContext) -> Iterator[pb.WatchResponse]:
        assert (list(request.job_ids), request.snapshot) == ([ID], True)
        yield pb.WatchResponse(job=job_pb2.Job(id=ID, state=job_pb2.JOB_STATE_RUNNING, exit_code=99))
        yield pb.WatchResponse(mark=pb.WatchMark(snapshot_complete=True), resume_token="a")
        assert self.finished.wait(60)
        yield pb.WatchResponse(job=self._end, resume_token="b")

    def _stop(self, request: pb.StopRequest, _context: grpc.ServicerContext) -> pb.StopResponse:
        self.asked_to_stop.append(request)
        self.stopping.set()
        self._end = ended("STOPPED", signal=15)
        return pb.StopResponse(job=self._end)


def started(
    job: OneJob, *args: str, stdout: int = subprocess.PIPE
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    command = job.agent.command("run", *args, "sleep", "9")
    return processes.running(command, stdout=stdout, stderr=subprocess.PIPE)


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stderr is not None
    return process.stderr.readline()


def test_output_and_exit_code_are_the_jobs(agent: scripted.ScriptedAgent) -> None:
    OneJob(agent, ended("EXITED", exit_code=3), WRITTEN).finish()
    done = agent.cli("run", "sleep", "9")
    assert done.returncode == 3
    assert done.stdout == b"out \xff\x00\x1b[2J\r\nmore"
    assert done.stderr == b"err \xfe\n"


def test_output_that_goes_to_one_file_keeps_its_order(agent: scripted.ScriptedAgent) -> None:
    OneJob(agent, ended("EXITED", exit_code=0), WRITTEN).finish()
    command = agent.command("run", "sleep", "9")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"".join(data for _, data in WRITTEN))
    assert [request.source for request in agent.requests if isinstance(request, pb.StreamRequest)] == [BOTH]


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        (ended("EXITED", exit_code=0), 0, ""),
        (ended("EXITED", exit_code=255), 255, ""),
        (ended("SIGNALED", signal=11), 139, ""),
        (
            ended("OOM_KILLED", signal=9, limits=[job_pb2.LimitStatus(name="memory", requested="64M")]),
            137,
            f"job {ID} was killed for going over its memory limit (64M)",
        ),
        (ended("STOPPED", signal=15), 143, f"job {ID} was stopped"),
        (ended("LOST"), 125, f"job {ID} was lost, its end was not seen: no more is known"),
        (ended("LOST", exit_code=4, detail="reboot"), 4, f"job {ID} was lost, its end was not seen: reboot"),
    ],
)
def test_exit_codes_and_notices(end: job_pb2.Job, code: int, told: str) -> None:
    assert exit_status(end) == code
    assert notice_of(end) == told


def test_a_timeout_is_told(agent: scripted.ScriptedAgent) -> None:
    end = ended("TIMED_OUT", signal=15)
    end.timeout.FromMilliseconds(1500)
    OneJob(agent, end, []).finish()
    done = agent.cli("run", "--timeout", "1.5s", "sleep", "9")
    assert done.returncode == 143
    assert done.stderr == f"worker-client: job {ID} was stopped at its timeout of 1.5 s\n".encode()


@pytest.mark.parametrize(
    ("code", "fields", "exit_code"),
    [
        ("FAILED_PRECONDITION", {"step": "exec", "errno_name": "ENOENT"}, 127),
        ("FAILED_PRECONDITION", {"step": "exec", "errno_name": "EACCES"}, 126),
        ("FAILED_PRECONDITION", {"step": "exec", "errno_name": "ENOEXEC"}, 126),
        ("FAILED_PRECONDITION", {"step": "exec", "errno_name": "E2BIG"}, 125),
        ("FAILED_PRECONDITION", {"step": "chdir", "errno_name": "ENOENT"}, 125),
        ("PERMISSION_DENIED", {}, 125),
        ("INVALID_ARGUMENT", {}, 125),
        ("UNAVAILABLE", {}, 125),
    ],
)
def test_failures_of_the_tool_have_codes_of_their_own(
    agent: scripted.ScriptedAgent, code: str, fields: dict[str, str], exit_code: int
) -> None:
    def refuse(_request: object, context: grpc.ServicerContext) -> None:
        scripted.fail(context, code, "REASON", "it failed", **fields)

    agent.handlers["Start"] = refuse
    done = agent.cli("run", "nope")
    assert (done.returncode, done.stdout, done.stderr) == (exit_code, b"", b"worker-client: it failed\n")


@pytest.mark.parametrize("args", [(), ("--bogus", "ls"), ("--cpu", "50", "ls")])
def test_what_run_does_not_understand_is_a_failure_of_the_tool(
    agent: scripted.ScriptedAgent, args: tuple[str, ...]
) -> None:
    done = agent.cli("run", *args)
    assert (done.returncode, done.stderr.count(b"\n")) == (125, 1)
    assert not agent.requests


def test_a_failing_stream_is_a_failure_of_the_tool(agent: scripted.ScriptedAgent) -> None:
    def refuse(_request: object, context: grpc.ServicerContext) -> None:
        scripted.fail(context, "DATA_LOSS", "OUTPUT_DROPPED", "the disk is broken")

    job = OneJob(agent, ended("EXITED", exit_code=0), [])
    agent.handlers["Stream"] = refuse
    done = agent.cli("--request-id", "r1", "run", "sleep", "9")
    left, failed = done.stderr.decode().splitlines()
    assert (done.returncode, failed) == (125, "worker-client: the disk is broken (request r1)")
    assert left == f"worker-client: job {ID} may go on; `worker-client query {ID}` tells how it is"
    assert not job.asked_to_stop


def test_a_job_that_somebody_else_writes_to_is_not_stopped(agent: scripted.ScriptedAgent, tmp_path: Path) -> None:
    def refuse(_messages: Iterator[pb.WriteStdinRequest], context: grpc.ServicerContext) -> None:
        scripted.fail(context, "FAILED_PRECONDITION", "STDIN_OFFSET", "somebody else writes", taken="70000")

    job = OneJob(agent, ended("EXITED", exit_code=0), [])
    agent.handlers["WriteStdin"] = refuse
    (tmp_path / "data").write_bytes(bytes(100_000))
    done = agent.cli("run", "--stdin", str(tmp_path / "data"), "sleep", "9")
    left, failed = done.stderr.decode().splitlines()
    assert (done.returncode, failed) == (125, "worker-client: somebody else writes")
    assert left.startswith(f"worker-client: job {ID} may go on;")
    assert not job.asked_to_stop


def test_what_has_taken_more_than_there_is_was_given_something_else(
    agent: scripted.ScriptedAgent, tmp_path: Path
) -> None:
    job = OneJob(agent, ended("EXITED", exit_code=0), [])
    agent.handlers["Query"] = lambda _request, _context: pb.QueryResponse(
        job=job_pb2.Job(id=ID, stdin_open=True, stdin_bytes=100_007)
    )
    (tmp_path / "data").write_bytes(bytes(100_000))
    done = agent.cli("run", "--idempotency-key", "k", "--stdin", str(tmp_path / "data"), "sleep", "9")
    assert done.returncode == 125
    assert b"--stdin: ends 7 bytes before what the job has taken of it" in done.stderr
    assert not job.asked_to_stop


def test_output_that_no_agent_gives_is_a_failure_of_the_tool(agent: scripted.ScriptedAgent) -> None:
    OneJob(agent, ended("EXITED", exit_code=0), []).finish()
    told = scripted.chunk(0, b"lost")
    told.chunk.time.seconds = 10**18
    agent.handlers["Stream"] = lambda _request, _context: iter([told, scripted.end(4)])
    done = agent.cli("run", "sleep", "9")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"worker-client: protocol error: output with a time that is none\n" in done.stderr


class Failing:
    """A client whose streams, or inputs, fail as nobody has foreseen."""

    def __init__(self) -> None:
        self.stopped = False

    def stream(self, _job_id: str, **_options: Any) -> Iterator[Item]:
        raise RuntimeError("unforeseen")

    def stop(self, _job_id: str, **_options: Any) -> None:
        self.stopped = True


@pytest.mark.usefixtures("capfd")
def test_what_nobody_has_foreseen_is_not_taken_for_the_end_of_the_output() -> None:
    client: Any = Failing()
    with pytest.raises(RuntimeError, match="unforeseen"):
        client_run._Following(client, ID, Input(b"", None, None, end=True)).run()
    assert not client.stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_stops_the_job_and_follows_it_to_its_end(
    agent: scripted.ScriptedAgent, number: signal.Signals
) -> None:
    job = OneJob(agent, ended("EXITED", exit_code=0), WRITTEN)
    with started(job) as process:
        assert job.following.wait(60)
        process.send_signal(number)
        assert f"worker-client: stopping job {ID}".encode() in line_of(process) + line_of(process)
        assert job.stopping.wait(60)
        # What the job writes while it is being stopped comes out to its end.
        job.finish()
        out, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b"out \xff\x00\x1b[2J\r\nmore"
    assert b"was stopped" in rest
    assert [request.no_wait for request in job.asked_to_stop] == [True]


def test_ctrl_c_counts_whichever_thread_the_kernel_gives_it_to(agent: scripted.ScriptedAgent) -> None:
    job = OneJob(agent, ended("EXITED", exit_code=0), [])
    with started(job) as process:
        assert job.following.wait(60)
        others = [int(name) for name in os.listdir(f"/proc/{process.pid}/task") if name != str(process.pid)]
        for thread in others:
            # Those that have it blocked keep it to themselves.
            with open(f"/proc/{process.pid}/task/{thread}/status") as file:
                blocked = next(line for line in file if line.startswith("SigBlk"))
            if not int(blocked.split()[1], 16) & 1 << (signal.SIGINT - 1):
                assert ctypes.CDLL(None).tgkill(process.pid, thread, signal.SIGINT) == 0
                break
        assert f"worker-client: stopping job {ID}".encode() in line_of(process)
        job.finish()
        process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_second_ctrl_c_leaves_at_once(agent: scripted.ScriptedAgent) -> None:
    job = OneJob(agent, ended("EXITED", exit_code=0), [])
    with started(job) as process:
        assert job.following.wait(60)
        process.send_signal(signal.SIGINT)
        assert b"stopping job" in line_of(process)
        assert job.stopping.wait(60)
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    # Whether the answer to the stop was seen before the second one is a matter of luck.
    states = (f"worker-client: job {ID} {state};".encode() for state in ("is being stopped", "may go on"))
    assert rest.startswith(tuple(states))
    assert rest.count(b"\n") == 1


def test_ctrl_c_can_leave_the_job_running(agent: scripted.ScriptedAgent) -> None:
    job = OneJob(agent, ended("EXITED", exit_code=0), [])
    with started(job, "--detach-on-interrupt") as process:
        assert job.following.wait(60)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == f"worker-client: job {ID} goes on; `worker-client query {ID}` tells how it is\n".encode()
    assert not job.asked_to_stop


def test_ctrl_c_during_the_start_stops_the_job_once_it_is_there(agent: scripted.ScriptedAgent) -> None:
    job = OneJob(agent, ended("EXITED", exit_code=0), [])
    starting, go_on = threading.Event(), threading.Event()
    start = agent.handlers["Start"]

    def slow(request: Any, context: grpc.ServicerContext) -> Any:
        starting.set()
        assert go_on.wait(60)
        return start(request, context)

    agent.handlers["Start"] = slow
    with started(job) as process:
        assert starting.wait(60)
        process.send_signal(signal.SIGINT)
        go_on.set()
        assert b"stopping job" in line_of(process)
        job.finish()
        process.communicate(timeout=60)
    assert process.returncode == 130


def test_where_ctrl_c_is_ignored_it_stays_so(agent: scripted.ScriptedAgent) -> None:
    job = OneJob(agent, ended("EXITED", exit_code=7), [])
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *agent.command("run", "sleep", "9")]
    with processes.running(command) as process:
        assert job.following.wait(60)
        process.send_signal(signal.SIGINT)
        job.finish()
        assert process.wait(60) == 7
    assert not job.asked_to_stop


def test_nobody_reading_ends_the_job_quietly(agent: scripted.ScriptedAgent) -> None:
    job = OneJob(agent, ended("EXITED", exit_code=0), [(OUT, b"x" * 100)])
    reading, writing = os.pipe()
    os.close(reading)
    with started(job, stdout=writing) as process:
        os.close(writing)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (141, b"")
    assert len(job.asked_to_stop) == 1


def test_nobody_reading_a_job_that_has_ended_is_quiet_too(agent: scripted.ScriptedAgent) -> None:
    def refuse(_request: pb.StopRequest, context: grpc.ServicerContext) -> None:
        scripted.fail(context, "FAILED_PRECONDITION", "JOB_ALREADY_ENDED", "too late")

    job = OneJob(agent, ended("EXITED", exit_code=0), [(OUT, b"x" * 100)])
    agent.handlers["Stop"] = refuse
    reading, writing = os.pipe()
    os.close(reading)
    with started(job, stdout=writing) as process:
        os.close(writing)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (141, b"")


@pytest.mark.parametrize("args", [("run", "sleep"), ("stream", ID), ("logs", "-f", ID)])
def test_on_a_terminal_control_sequences_are_written_out(
    agent: scripted.ScriptedAgent, args: tuple[str, ...]
) -> None:
    data = b"\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J end"
    OneJob(agent, ended("EXITED", exit_code=0), [(BOTH, data[:2]), (BOTH, data[2:])]).finish()
    agent.handlers["Stream"] = lambda _request, _context: iter(
        [scripted.chunk(0, data[:2]), scripted.chunk(2, data[2:]), scripted.end(len(data))]
    )
    code, shown = on_a_terminal(agent.command(*args))
    assert code == 0
    assert shown == b"\x1b[31mred\x1b[0m \\x1b]0;title\\x07 \\x9b2J end\x1b[0m"


def test_a_stream_is_written_unchanged_and_its_gaps_are_told(agent: scripted.ScriptedAgent) -> None:
    data = bytes(range(256)) * 10
    agent.handlers["Stream"] = lambda _request, _context: iter(
        [
            pb.StreamResponse(gap=pb.OutputGap(offset=5, length=5, reason="expired\x1b[2J")),
            scripted.chunk(10, data),
            scripted.end(10 + len(data)),
        ]
    )
    done = agent.cli("stream", ID, "--offset", "5")
    assert (done.returncode, done.stdout) == (0, data)
    assert done.stderr == b"worker-client: output bytes 5 to 9 are missing: expired\\x1b[2J\n"
    assert agent.requests == [pb.StreamRequest(job_id=ID, offset=5)]


def gap(offset: int, length: int, reason: str) -> pb.StreamResponse:
    return pb.StreamResponse(gap=pb.OutputGap(offset=offset, length=length, reason=reason))


def test_a_gap_is_told_in_one_line_in_however_many_pieces_it_comes(agent: scripted.ScriptedAgent) -> None:
    gaps = [gap(0, 5, "disk full"), gap(5, 5, "disk full"), gap(10, 1, "dropped"), gap(12, 2, "disk full")]
    responses = [*gaps[:3], scripted.chunk(11, b"x"), gaps[3], scripted.end(14)]
    agent.handlers["Stream"] = lambda _request, _context: iter(responses)
    done = agent.cli("stream", ID)
    assert (done.returncode, done.stdout) == (0, b"x")
    assert done.stderr.decode().splitlines() == [
        "worker-client: output bytes 0 to 9 are missing: disk full",
        "worker-client: output bytes 10 to 10 are missing: dropped",
        "worker-client: output bytes 12 to 13 are missing: disk full",
    ]


def test_a_gap_changes_no_exit_code_and_is_told_once(agent: scripted.ScriptedAgent) -> None:
    OneJob(agent, ended("EXITED", exit_code=7), []).finish()
    agent.handlers["Stream"] = lambda _request, _context: iter([gap(0, 100, "disk full"), scripted.end(100)])
    done = agent.cli("run", "sleep", "9")
    assert (done.returncode, done.stdout) == (7, b"")
    assert done.stderr == b"worker-client: output bytes 0 to 99 are missing: disk full\n"


@pytest.mark.parametrize(
    ("args", "source"), [(("--stdout",), OUT), (("--stderr",), ERR), (("--stdout", "--stderr"), BOTH), ((), BOTH)]
)
def test_a_stream_can_be_of_one_source(
    agent: scripted.ScriptedAgent, args: tuple[str, ...], source: pb.OutputSource.ValueType
) -> None:
    agent.handlers["Stream"] = lambda _request, _context: iter([scripted.end(0)])
    assert agent.cli("stream", ID, "-f", *args).returncode == 0
    assert agent.requests == [pb.StreamRequest(job_id=ID, follow=True, source=source)]

"""Every call of the contract over mutual TLS, with a real supervisor and real jobs behind the gateway."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types

import jobworker
from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from support import certs, gateway, root_side

Stub = JobWorkerServiceStub
UNKNOWN_ID = "0000-0000-0000-0000"
SEGMENT_BYTES = 64 * 1024


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[root_side.RootSide]:
    with root_side.root_side(str(tmp_path_factory.mktemp("root")), segment_bytes=SEGMENT_BYTES) as running:
        yield running


def start(stub: Stub, *command: str, **fields: Any) -> job_pb2.Job:
    return stub.Start(pb.StartRequest(command=command[0], args=command[1:], **fields)).job


def query(stub: Stub, job: job_pb2.Job) -> job_pb2.Job:
    return stub.Query(pb.QueryRequest(job_id=job.id)).job


def stream(stub: Stub, job: job_pb2.Job, **fields: Any) -> list[pb.StreamResponse]:
    return list(stub.Stream(pb.StreamRequest(job_id=job.id, **fields)))


def output(stub: Stub, job: job_pb2.Job, **fields: Any) -> bytes:
    return b"".join(message.chunk.data for message in stream(stub, job, **fields))


def ended(stub: Stub, job: job_pb2.Job) -> job_pb2.Job:
    """The job once its output has ended and its record says so."""
    output(stub, job, follow=True)
    while (known := query(stub, job)).state != job_pb2.JOB_STATE_ENDED:
        pass
    return known


def refused(call: Any, request: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        list(call(request)) if "Stream" in call._method.decode() else call(request)
    return caught.value


# Start and Query.


def test_a_job_runs(stub: Stub) -> None:
    job = start(stub, "sh", "-c", "exit 7", env={"A": "b"}, labels={"k": "v"}, timeout=Duration(seconds=60))
    assert job.state in (job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_ENDED)
    known = ended(stub, job)
    assert (known.end_reason, known.exit_code) == (job_pb2.END_REASON_EXITED, 7)
    assert (known.command, list(known.args)) == ("sh", ["-c", "exit 7"])
    assert (list(known.env_names), dict(known.labels)) == (["A"], {"k": "v"})
    assert known.principal == "spiffe://dev.jobworker.internal/user/writer"
    assert known.created_at.ToNanoseconds() <= known.started_at.ToNanoseconds() <= known.ended_at.ToNanoseconds()
    assert known.timeout.seconds == 60


def test_the_environment_is_what_was_asked_for_and_its_values_are_not_told(stub: Stub) -> None:
    job = start(stub, "/usr/bin/env", env={"TOKEN": "s3cret"})
    assert output(stub, job, follow=True) == b"TOKEN=s3cret\n"
    assert "s3cret" not in str(query(stub, job))


def test_a_running_job_is_told_as_it_is(stub: Stub) -> None:
    job = start(stub, "sleep", "1000")
    try:
        known = query(stub, job)
        assert known.state == job_pb2.JOB_STATE_RUNNING
        assert os.path.exists(f"/proc/{known.pid}")
    finally:
        stub.Stop(pb.StopRequest(job_id=job.id, force=True))


def test_a_command_that_is_not_there(stub: Stub) -> None:
    error = refused(stub.Start, pb.StartRequest(command="/no/such/command"))
    assert (gateway.code(error), gateway.reason(error)) == ("FAILED_PRECONDITION", "START_FAILED")
    assert "/no/such/command" in error.details()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"command": ""}, "command"),
        ({"args": ["a\0b"]}, "args[0]"),
        ({"args": ["", "x" * 200 * 1024]}, "args[1]"),
        ({"args": ["\x01" * 100_000]}, "args"),
        ({"limits": {"cpu": "50"}}, "limits.cpu"),
        ({"limits": {"memory": "-1M"}}, "limits.memory"),
        ({"limits": {"memory": "1e9G"}}, "limits.memory"),
        ({"limits": {"memory": "1024T"}}, "limits.memory"),
    ],
)
def test_a_bad_field_is_named_and_nothing_is_left(
    stub: Stub, side: root_side.RootSide, fields: dict[str, Any], named: str
) -> None:
    jobs_directory = os.path.join(side.state_dir, "jobs")
    before = os.listdir(jobs_directory)
    error = refused(stub.Start, pb.StartRequest(**{"command": "true", **fields}))
    assert (gateway.code(error), gateway.reason(error)) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert gateway.violated_field(error) == named
    assert os.listdir(jobs_directory) == before


@pytest.mark.parametrize("call", ["Stop", "Query", "Stream"])
@pytest.mark.parametrize(
    ("job_id", "code"), [("../x", "INVALID_ARGUMENT"), ("", "INVALID_ARGUMENT"), (UNKNOWN_ID, "NOT_FOUND")]
)
def test_an_id_that_is_none(stub: Stub, call: str, job_id: str, code: str) -> None:
    request = getattr(pb, f"{call}Request")(job_id=job_id)
    error = refused(getattr(stub, call), request)
    assert gateway.code(error) == code
    assert gateway.reason(error) == {"NOT_FOUND": "JOB_NOT_FOUND"}.get(code, "INVALID_FIELD")


# Stop.


def test_a_stop_answers_with_the_end(stub: Stub) -> None:
    job = start(stub, "sleep", "1000")
    stopped = stub.Stop(pb.StopRequest(job_id=job.id)).job
    assert (stopped.state, stopped.end_reason) == (job_pb2.JOB_STATE_ENDED, job_pb2.END_REASON_STOPPED)
    assert stopped.signal == signal.SIGTERM
    assert not os.path.exists(f"/proc/{job.pid}")


def test_a_second_stop_is_refused(stub: Stub) -> None:
    job = start(stub, "sleep", "1000")
    stub.Stop(pb.StopRequest(job_id=job.id))
    error = refused(stub.Stop, pb.StopRequest(job_id=job.id))
    assert (gateway.code(error), gateway.reason(error)) == ("FAILED_PRECONDITION", "JOB_ALREADY_ENDED")


def test_the_first_signal_is_the_one_that_was_asked_for(stub: Stub) -> None:
    job = start(stub, "sh", "-c", "trap 'echo int; exit 3' INT; echo ready; while :; do sleep 0.01; done")
    first = next(iter(stub.Stream(pb.StreamRequest(job_id=job.id, follow=True))))
    assert first.chunk.data == b"ready\n"
    stopped = stub.Stop(pb.StopRequest(job_id=job.id, signal="INT")).job
    assert (stopped.exit_code, output(stub, job)) == (3, b"ready\nint\n")


def test_a_stop_need_not_be_waited_for_and_a_second_one_hastens_it(stub: Stub) -> None:
    job = start(stub, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done")
    next(iter(stub.Stream(pb.StreamRequest(job_id=job.id, follow=True))))
    under_way = stub.Stop(pb.StopRequest(job_id=job.id, grace=Duration(seconds=3600), no_wait=True)).job
    assert under_way.state == job_pb2.JOB_STATE_STOPPING
    stopped = stub.Stop(pb.StopRequest(job_id=job.id, force=True)).job
    assert (stopped.state, stopped.signal) == (job_pb2.JOB_STATE_ENDED, signal.SIGKILL)


# Stream.


def test_output_as_bytes_live_and_after(stub: Stub) -> None:
    size = 10 * SEGMENT_BYTES + 17
    job = start(stub, "sh", "-c", f"head -c {size} /dev/urandom >blob; sha256sum blob >&2; cat blob")
    *chunks, end = stream(stub, job, follow=True, source=pb.OUTPUT_SOURCE_STDOUT)
    data = b"".join(message.chunk.data for message in chunks)
    assert (len(data), end.end.output_ended) == (size, True)
    checksum = output(stub, job, source=pb.OUTPUT_SOURCE_STDERR)
    assert hashlib.sha256(data).hexdigest().encode() == checksum.split()[0]
    assert output(stub, job) == checksum + data


def test_every_offset_comes_once(stub: Stub) -> None:
    job = start(stub, "seq", "200000")
    *chunks, end = stream(stub, job, follow=True)
    position = 0
    for message in chunks:
        assert message.chunk.offset == position
        position += len(message.chunk.data)
    expected = b"".join(b"%d\n" % i for i in range(1, 200_001))
    assert (position, end.end.offset) == (len(expected), len(expected))
    assert output(stub, job) == expected
    assert output(stub, job, offset=1_000_001) == expected[1_000_001:]


def test_the_sources_apart(stub: Stub) -> None:
    job = start(stub, "sh", "-c", "echo out; sleep 0.1; echo err >&2; sleep 0.1; echo out")
    assert output(stub, job, follow=True, source=pb.OUTPUT_SOURCE_STDOUT) == b"out\nout\n"
    assert output(stub, job, source=pb.OUTPUT_SOURCE_STDERR) == b"err\n"
    assert output(stub, job) == b"out\nerr\nout\n"


def test_output_comes_while_the_job_runs_and_the_stream_ends_with_it(stub: Stub) -> None:
    job = start(stub, "sh", "-c", "trap 'echo second; exit' USR1; echo first; while :; do sleep 0.01; done")
    call = stub.Stream(pb.StreamRequest(job_id=job.id, follow=True))
    assert next(call).chunk.data == b"first\n"
    os.kill(job.pid, signal.SIGUSR1)
    assert b"second" in b"".join(message.chunk.data for message in call)
    assert dict(call.trailing_metadata())["jobworker-resume-offset"] == "13"


def test_without_follow_a_stream_ends_with_what_is_there(stub: Stub) -> None:
    job = start(stub, "sh", "-c", "echo first; exec sleep 1000")
    next(iter(stub.Stream(pb.StreamRequest(job_id=job.id, follow=True))))
    chunk, end = stream(stub, job)
    assert (chunk.chunk.data, end.end) == (b"first\n", pb.OutputEnd(offset=6))
    stub.Stop(pb.StopRequest(job_id=job.id, force=True))


def test_an_offset_beyond_the_end(stub: Stub) -> None:
    job = start(stub, "echo", "x")
    assert output(stub, job, follow=True, offset=1) == b"\n"
    for follow in (False, True):
        error = refused(stub.Stream, pb.StreamRequest(job_id=job.id, offset=3, follow=follow))
        assert (gateway.code(error), gateway.violated_field(error)) == ("INVALID_ARGUMENT", "offset")
        assert "there is 0 to 2" in error.details()


def test_the_last_lines_and_what_comes(stub: Stub) -> None:
    job = start(stub, "sh", "-c", "trap 'echo oops >&2; exit' USR1; seq 50000; while :; do sleep 0.01; done")
    expected = b"".join(b"%d\n" % number for number in range(1, 50_001))
    read = 0
    for message in stub.Stream(pb.StreamRequest(job_id=job.id, follow=True)):
        read += len(message.chunk.data)
        if read == len(expected):
            break
    assert output(stub, job, tail_lines=2) == b"49999\n50000\n"
    assert output(stub, job, tail_lines=30_000) == expected[expected.index(b"\n20001\n") + 1 :]
    call = stub.Stream(pb.StreamRequest(job_id=job.id, follow=True, tail_lines=0))
    assert next(call).chunk == pb.OutputChunk(offset=read)
    os.kill(job.pid, signal.SIGUSR1)
    assert b"".join(message.chunk.data for message in call) == b"oops\n"
    assert output(stub, job, tail_lines=2) == b"50000\noops\n"
    assert output(stub, job, tail_lines=1, source=pb.OUTPUT_SOURCE_STDOUT) == b"50000\n"


def test_output_by_its_times(stub: Stub) -> None:
    script = "for i in 1 2 3; do echo out $i; sleep 0.1; echo err $i >&2; sleep 0.1; done"
    job = start(stub, "sh", "-c", script)
    output(stub, job, follow=True)
    *chunks, _ = [message.chunk for message in stream(stub, job, timestamps=True)]
    assert [chunk.data for chunk in chunks] == [
        b"%s %d\n" % (name, i) for i in (1, 2, 3) for name in (b"out", b"err")
    ]
    assert [chunk.source for chunk in chunks] == [pb.OUTPUT_SOURCE_STDOUT, pb.OUTPUT_SOURCE_STDERR] * 3
    times = [chunk.time for chunk in chunks]
    assert query(stub, job).started_at.ToNanoseconds() <= times[0].ToNanoseconds()
    assert output(stub, job, since=times[2], until=times[4]) == b"out 2\nerr 2\n"
    assert output(stub, job, since=times[1], source=pb.OUTPUT_SOURCE_STDERR, tail_lines=2) == b"err 2\nerr 3\n"
    *_, end = stream(stub, job, until=times[1])
    assert end.end == pb.OutputEnd(offset=6)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tail_lines": 1_000_001}, "tail_lines"),
        ({"tail_lines": 1, "offset": 1}, "tail_lines"),
        ({"since": Timestamp(), "offset": 1}, "since"),
        ({"since": Timestamp(seconds=-1)}, "since"),
        ({"until": Timestamp(seconds=253_402_300_800)}, "until"),
        ({"until": Timestamp(seconds=1, nanos=1_000_000_000)}, "until"),
        ({"until": Timestamp(seconds=1), "follow": True}, "until"),
        ({"since": Timestamp(seconds=1), "until": Timestamp(seconds=1)}, "until"),
    ],
)
def test_parts_of_the_output_that_make_no_sense(stub: Stub, fields: dict[str, Any], field: str) -> None:
    job = start(stub, "true")
    error = refused(stub.Stream, pb.StreamRequest(job_id=job.id, **fields))
    assert (gateway.code(error), gateway.violated_field(error)) == ("INVALID_ARGUMENT", field)
    assert "for example" in error.details()


def test_a_job_that_is_not_there_is_told_before_all_else(stub: Stub) -> None:
    """As one is that the caller is not to know of."""
    error = refused(stub.Stream, pb.StreamRequest(job_id=UNKNOWN_ID, tail_lines=1, offset=1))
    assert gateway.code(error) == "NOT_FOUND"


def test_many_followers_get_all_of_it(stub: Stub) -> None:
    job = start(stub, "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do head -c 50000 /dev/zero; sleep 0.02; done")
    calls = [stub.Stream(pb.StreamRequest(job_id=job.id, follow=True)) for _ in range(50)]
    for call in calls:
        assert sum(len(message.chunk.data) for message in call) == 400_000


# List and GetAgentInfo.


def test_lists_and_pages(stub: Stub) -> None:
    jobs = [start(stub, "true", labels={"test": "pages"}) for _ in range(5)]
    request = pb.ListRequest(labels={"test": "pages"}, page_size=2)
    listed, pages = list[str](), 0
    while True:
        page = stub.List(request)
        listed += [job.id for job in page.jobs]
        pages += 1
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert (listed, pages) == ([job.id for job in reversed(jobs)], 3)
    (found,) = stub.List(pb.ListRequest(id_prefix=jobs[0].id[:12])).jobs
    assert found.id == jobs[0].id


def test_a_page_of_large_jobs_is_short_and_goes_on(stub: Stub) -> None:
    for _ in range(16):
        start(stub, "true", *(("x" * 120_000,) * 2), labels={"test": "large"})
    request, sizes = pb.ListRequest(labels={"test": "large"}), list[int]()
    while True:
        page = stub.List(request)
        assert page.ByteSize() < 4 * 1024 * 1024
        sizes.append(len(page.jobs))
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert (sum(sizes), len(sizes) > 1) == (16, True)


def test_what_the_agent_is(stub: Stub) -> None:
    before = time.time_ns()
    info = stub.GetAgentInfo(pb.GetAgentInfoRequest())
    assert before <= info.time.ToNanoseconds() <= time.time_ns()
    system = os.uname()
    assert (info.version, info.supervisor_version, info.hostname, info.kernel) == (
        jobworker.__version__,
        jobworker.__version__,
        system.nodename,
        system.release,
    )
    assert {limit.name for limit in info.limits} >= {"cpu", "memory", "pids"}
    expires = certs.dev_pki().pair("server").certificate.not_valid_after_utc
    assert info.certificate_expires_at.seconds == int(expires.timestamp())
    ca_ends = certs.dev_pki().pair("ca").certificate.not_valid_after_utc
    assert info.ca_expires_at.seconds == int(ca_ends.timestamp())
    assert not info.HasField("crl_expires_at")
    assert info.cpus == os.cpu_count()


# The agent's own life.


def test_health(running: gateway.Gateway, stub: Stub) -> None:
    stub.GetAgentInfo(pb.GetAgentInfoRequest())
    with running.channel(name="reader") as connection:
        health = health_pb2_grpc.HealthStub(connection)
        for service in ("", "jobworker.api.v1.JobWorkerService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == 1
        error = refused(health.Check, health_pb2.HealthCheckRequest(service="x" * 1000))
        assert gateway.code(error) == "NOT_FOUND"
        assert set(health.List(health_pb2.HealthListRequest()).statuses) == {
            "",
            "jobworker.api.v1.JobWorkerService",
        }


def test_clients_that_go_away_in_the_midst_leave_nothing(
    side: root_side.RootSide, stub: Stub, tmp_path: Path
) -> None:
    """Neither a trace in the log, nor a descriptor."""
    job = start(stub, "sh", "-c", "head -c 30000000 /dev/zero; exec sleep 1000")
    with gateway.gateway(tmp_path, gateway.behind(side.settings)) as other:
        with other.channel() as connection:
            for _ in range(3):
                call = JobWorkerServiceStub(connection).Stream(pb.StreamRequest(job_id=job.id, follow=True))
                next(call)
                call.cancel()
        with other.stub() as leaving:
            next(iter(leaving.Stream(pb.StreamRequest(job_id=job.id, follow=True))))
        with other.stub() as last:
            assert query(last, job).id == job.id
            other.wait_for_calls("Stream", 4)
            segments = [path for path in other.open_files() if job.id in path]
        assert {entry["code"] for entry in other.calls("Stream")} == {"CANCELLED"}
        assert segments == []
        assert "Traceback" not in other.log()
    stub.Stop(pb.StopRequest(job_id=job.id, force=True))


def test_a_supervisor_that_is_killed_is_waited_for(stub: Stub, side: root_side.RootSide) -> None:
    job = start(stub, "sh", "-c", "for i in $(seq 400); do echo $i; sleep 0.005; done")
    call = stub.Stream(pb.StreamRequest(job_id=job.id, follow=True))
    data = next(call).chunk.data
    os.kill(side.supervisor_pid(), signal.SIGKILL)
    assert query(stub, job).id == job.id
    data += b"".join(message.chunk.data for message in call)
    assert data == b"".join(b"%d\n" % i for i in range(1, 401))


def test_a_gateway_that_stops_says_where_to_go_on(side: root_side.RootSide, stub: Stub, tmp_path: Path) -> None:
    job = start(stub, "sh", "-c", "echo first; exec sleep 1000")
    with gateway.gateway(tmp_path, gateway.behind(side.settings)) as other, other.stub() as connected:
        call = connected.Stream(pb.StreamRequest(job_id=job.id, follow=True))
        assert next(call).chunk.data == b"first\n"
        other.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert gateway.code(caught.value) == "UNAVAILABLE"
        assert gateway.reason(caught.value) == "AGENT_UNAVAILABLE"
        assert dict(call.trailing_metadata())["jobworker-resume-offset"] == "6"
    assert query(stub, job).state == job_pb2.JOB_STATE_RUNNING
    stub.Stop(pb.StopRequest(job_id=job.id, force=True))


def test_it_says_so_to_streams_that_catch_up_as_well(side: root_side.RootSide, stub: Stub, tmp_path: Path) -> None:
    """Most of them wait for their next piece's turn, which they are not told to go on behind."""
    job = start(stub, "sh", "-c", "head -c 64M /dev/zero; exec sleep 1000")
    streams = 40
    received, begun = [0] * streams, threading.Semaphore(0)
    with gateway.gateway(tmp_path, gateway.behind(side.settings)) as other, other.stub() as connected:
        calls = [connected.Stream(pb.StreamRequest(job_id=job.id, follow=True)) for _ in range(streams)]

        def take(number: int) -> None:
            with suppress(grpc.RpcError):
                for message in calls[number]:
                    received[number] += len(message.chunk.data)
                    begun.release()

        with ThreadPoolExecutor(streams) as pool:
            taking = [pool.submit(take, number) for number in range(streams)]
            for _ in range(4 * streams):
                assert begun.acquire(timeout=gateway.DEADLINE)
            other.process.send_signal(signal.SIGTERM)
        assert [each.result() for each in taking] == [None] * streams
        assert {call.code() for call in calls} == {grpc.StatusCode.UNAVAILABLE}
        told = [dict(call.trailing_metadata())["jobworker-resume-offset"] for call in calls]
        assert told == [str(size) for size in received]
    stub.Stop(pb.StopRequest(job_id=job.id, force=True))


def test_without_a_supervisor_the_gateway_says_so(tmp_path: Path) -> None:
    with gateway.gateway(tmp_path) as alone, alone.stub() as connected, alone.channel() as connection:
        health = health_pb2_grpc.HealthStub(connection)
        assert health.Check(health_pb2.HealthCheckRequest()).status == 2
        error = refused(connected.List, pb.ListRequest())
        assert (gateway.code(error), gateway.reason(error)) == ("UNAVAILABLE", "AGENT_UNAVAILABLE")
        assert "supervisor cannot be reached" in error.details()

"""The client's calls against a real server that misbehaves."""

from __future__ import annotations

import contextlib
import math
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count, repeat
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import status_pb2  # type: ignore[import-untyped] # has no types
from grpc_status import rpc_status  # type: ignore[import-untyped] # likewise

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client import Endpoint, connect
from jobworker.client.failures import AmbiguousId, CallFailed, FieldViolation
from jobworker.client.rpc.client import Client
from jobworker.errors import InvalidField, JobNotFound, ProtocolError, TlsProblem
from jobworker.jobs import JobSpec, State
from jobworker.limits import Limits
from support import certs, scripted, tls_servers

ID = "k7f3-9m2q-x4tz-b1cd"
OTHER = "k7f3-9m2q-x4tz-b1ce"


def test_start_sends_the_whole_specification(agent: scripted.ScriptedAgent, client: Client) -> None:
    agent.handlers["Start"] = lambda _request, _context: pb.StartResponse(job=job_pb2.Job(id=ID))
    spec = JobSpec(
        "make",
        ("all", "-k"),
        env=(("A", "1"), ("B", "")),
        workdir="/srv",
        limits=Limits(cpu_millis=505, memory_bytes=64 * 1024**2, pids=7),
        timeout_ms=1500,
        labels=(("team", "build"),),
        best_effort=True,
        sandbox="strict",
    )
    assert client.start(spec).id == ID
    (request,) = agent.requests
    assert (request.command, list(request.args)) == ("make", ["all", "-k"])
    assert dict(request.env) == {"A": "1", "B": ""}
    assert request.workdir == "/srv"
    assert (request.limits.cpu, request.limits.memory, request.limits.pids) == ("50.5%", "64M", 7)
    assert request.timeout.ToMilliseconds() == 1500
    assert dict(request.labels) == {"team": "build"}
    assert (request.best_effort, request.sandbox) == (True, "strict")


def test_start_without_wishes_sends_none(agent: scripted.ScriptedAgent, client: Client) -> None:
    agent.handlers["Start"] = lambda _request, _context: pb.StartResponse(job=job_pb2.Job(id=ID))
    client.start(JobSpec("ls"))
    assert agent.requests == [pb.StartRequest(command="ls", limits=job_pb2.Limits())]


@pytest.mark.parametrize(
    ("spec", "field", "told"),
    [
        (JobSpec("ls", ("a", "\udcff")), "args[1]", "argument 2 "),
        (JobSpec("\udcff"), "command", "UTF-8"),
        (JobSpec("ls", env=(("A", "\udcff"),)), "env[A]", "UTF-8"),
        (JobSpec("ls", workdir="/\udcff"), "workdir", "UTF-8"),
        (JobSpec(""), "command", "empty"),
        (JobSpec("ls", ("a\0b",)), "args[0]", "NUL"),
    ],
)
def test_what_no_agent_takes_is_not_sent(
    agent: scripted.ScriptedAgent, client: Client, spec: JobSpec, field: str, told: str
) -> None:
    with pytest.raises(InvalidField) as caught:
        client.start(spec)
    assert caught.value.field == field
    assert told in str(caught.value)
    assert not agent.requests


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda client: next(client.list_jobs(principal="\udcff")), "principal"),
        (lambda client: next(client.list_jobs(labels={"\udcff": ""})), "labels"),
        (lambda client: next(client.list_jobs(labels={"team": "\udcff"})), "labels[team]"),
        (lambda client: next(client.list_jobs(id_prefix="\udcff")), "id_prefix"),
        (lambda client: client.watch(principal="\udcff"), "principal"),
        (lambda client: client.watch(labels={"team": "\udcff"}), "labels[team]"),
        (lambda client: client.watch(resume_token="\udcff"), "resume_token"),
        (lambda client: client.watch(job_ids=[ID, "\udcff"]), "job_ids"),
        (lambda client: client.query("\udcff"), "job_id"),
        (lambda client: client.delete("\udcff"), "job_id"),
    ],
)
def test_what_is_no_text_is_not_sent(
    agent: scripted.ScriptedAgent, client: Client, call: Callable[[Client], object], field: str
) -> None:
    with pytest.raises(InvalidField, match="UTF-8") as caught:
        call(client)
    assert caught.value.field == field
    assert not agent.requests


def test_rich_errors_come_with_all_their_fields(agent: scripted.ScriptedAgent, client: Client) -> None:
    def refuse(_request: pb.StartRequest, context: grpc.ServicerContext) -> None:
        scripted.fail(context, "FAILED_PRECONDITION", "START_FAILED", "no", step="exec", errno_name="ENOENT")

    agent.handlers["Start"] = refuse
    with pytest.raises(CallFailed) as caught:
        client.start(JobSpec("nope"))
    failure = caught.value
    assert (failure.code, failure.reason, failure.message) == ("FAILED_PRECONDITION", "START_FAILED", "no")
    assert failure.metadata == {"step": "exec", "errno_name": "ENOENT"}
    assert failure.violations == ()


def test_field_violations_are_told(agent: scripted.ScriptedAgent, client: Client) -> None:
    def refuse(_request: pb.StopRequest, context: grpc.ServicerContext) -> None:
        scripted.refuse_field(context, "signal", "is no signal")

    agent.handlers["Stop"] = refuse
    with pytest.raises(CallFailed) as caught:
        client.stop(ID, signal="BOGUS")
    assert caught.value.violations == (FieldViolation("signal", "is no signal"),)


def test_plain_and_contradictory_statuses_are_errors_too(agent: scripted.ScriptedAgent, client: Client) -> None:
    def contradict(_request: pb.QueryRequest, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "gone")

    agent.handlers["Query"] = contradict
    with pytest.raises(CallFailed) as caught:
        client.query(ID)
    assert (caught.value.code, caught.value.reason, caught.value.message) == ("NOT_FOUND", "", "gone")


def test_reads_are_tried_again_while_the_agent_is_unavailable(
    agent: scripted.ScriptedAgent, client: Client
) -> None:
    def query(request: pb.QueryRequest, context: grpc.ServicerContext) -> pb.QueryResponse:
        if len(agent.requests) < 3:
            scripted.fail(context, "UNAVAILABLE", "AGENT_UNAVAILABLE", "restarting")
        return pb.QueryResponse(job=job_pb2.Job(id=request.job_id))

    agent.handlers["Query"] = query
    assert client.query(ID).id == ID
    assert len(agent.requests) == 3


def test_all_attempts_share_the_request_s_id(agent: scripted.ScriptedAgent, client: Client) -> None:
    sent: list[str] = []

    def query(request: pb.QueryRequest, context: grpc.ServicerContext) -> pb.QueryResponse:
        sent.append(str(dict(context.invocation_metadata())["x-request-id"]))
        if len(sent) < 3:
            scripted.fail(context, "UNAVAILABLE", "AGENT_UNAVAILABLE", "restarting")
        return pb.QueryResponse(job=job_pb2.Job(id=request.job_id))

    agent.handlers["Query"] = query
    client.query(ID)
    client.query(ID)
    first, second, third, another = sent
    assert first == second == third != another


def test_an_error_of_the_agents_own_names_the_request(agent: scripted.ScriptedAgent) -> None:
    def query(_request: pb.QueryRequest, context: grpc.ServicerContext) -> None:
        scripted.fail(context, "INTERNAL", "HOST_FAULT", "write failed: ENOSPC")

    def stop(_request: pb.StopRequest, context: grpc.ServicerContext) -> None:
        scripted.fail(context, "FAILED_PRECONDITION", "JOB_ALREADY_ENDED", "has ended")

    agent.handlers["Query"], agent.handlers["Stop"] = query, stop
    told = agent.cli("--request-id", "deploy-7", "query", ID)
    assert told.stderr == b"worker-client: write failed: ENOSPC (request deploy-7)\n"
    # What the caller can mend needs no look at a log.
    assert agent.cli("--request-id", "deploy-7", "stop", ID).stderr == b"worker-client: has ended\n"


def test_start_and_stop_are_not_tried_again(agent: scripted.ScriptedAgent, client: Client) -> None:
    def refuse(_request: object, context: grpc.ServicerContext) -> None:
        scripted.fail(context, "UNAVAILABLE", "AGENT_UNAVAILABLE", "restarting")

    agent.handlers["Start"] = agent.handlers["Stop"] = refuse
    with pytest.raises(CallFailed, match="restarting"):
        client.start(JobSpec("ls"))
    with pytest.raises(CallFailed, match="restarting"):
        client.stop(ID)
    assert len(agent.requests) == 2


def test_stop_waits_for_the_grace_and_more(agent: scripted.ScriptedAgent, client: Client) -> None:
    remaining: list[float] = []

    def stop(request: pb.StopRequest, context: grpc.ServicerContext) -> pb.StopResponse:
        remaining.append(context.time_remaining())
        return pb.StopResponse(job=job_pb2.Job(id=request.job_id))

    agent.handlers["Stop"] = stop
    client.stop(ID, grace_ms=60_000)
    client.stop(ID, grace_ms=60_000, wait=False)
    client.stop(ID, grace_ms=60_000, force=True)
    assert [left > 60 for left in remaining] == [True, False, False]
    assert [(r.grace.ToMilliseconds(), r.force, r.no_wait) for r in agent.requests] == [
        (60_000, False, False),
        (60_000, False, True),
        (60_000, True, False),
    ]


@pytest.mark.parametrize("grace_ms", [-1, 3_600_001, 10**17])
def test_stop_refuses_a_grace_that_no_agent_takes(client: Client, grace_ms: int) -> None:
    with pytest.raises(InvalidField, match="grace"):
        client.stop(ID, grace_ms=grace_ms)


def test_list_fetches_pages_as_they_are_needed(agent: scripted.ScriptedAgent, client: Client) -> None:
    def page(request: pb.ListRequest, _context: grpc.ServicerContext) -> pb.ListResponse:
        number = int(request.page_token or 0)
        return pb.ListResponse(
            jobs=[job_pb2.Job(id=ID, pid=number)], next_page_token=str(number + 1) if number < 2 else ""
        )

    agent.handlers["List"] = page
    jobs = client.list_jobs(states=[State.ENDED], labels={"a": "b"}, principal="spiffe://x/user/y")
    assert next(jobs).pid == 0
    assert len(agent.requests) == 1
    assert [job.pid for job in jobs] == [1, 2]
    assert all(list(request.states) == [job_pb2.JOB_STATE_ENDED] for request in agent.requests)
    assert all(dict(request.labels) == {"a": "b"} for request in agent.requests)
    assert all(request.principal == "spiffe://x/user/y" for request in agent.requests)


HOSTILE = "\x1b]52;c;cm0gLXJmIH4K\x07"


@pytest.mark.parametrize(
    ("method", "answer", "call"),
    [
        ("Start", pb.StartResponse(job=job_pb2.Job(id=HOSTILE)), lambda client: client.start(JobSpec("ls"))),
        ("Start", pb.StartResponse(job=job_pb2.Job(id=HOSTILE)), lambda client: client.plan(JobSpec("ls"))),
        ("Stop", pb.StopResponse(job=job_pb2.Job(id=ID + HOSTILE)), lambda client: client.stop(ID)),
        ("Query", pb.QueryResponse(), lambda client: client.query(ID)),
        ("List", pb.ListResponse(jobs=[job_pb2.Job(id=HOSTILE)]), lambda client: list(client.list_jobs())),
        ("Drain", pb.DrainResponse(active_job_ids=[ID, HOSTILE]), lambda client: client.drain()),
        ("Watch", [pb.WatchResponse(job=job_pb2.Job(id=HOSTILE))], lambda client: next(client.watch())),
        ("Watch", [pb.WatchResponse(removed_job_id=HOSTILE)], lambda client: next(client.watch())),
    ],
)
def test_what_is_no_job_s_id_gets_no_further(
    agent: scripted.ScriptedAgent, client: Client, method: str, answer: Any, call: Callable[[Client], object]
) -> None:
    agent.handlers[method] = lambda _request, _context: iter(answer) if method == "Watch" else answer
    with pytest.raises(ProtocolError, match="is not a job id") as caught:
        call(client)
    assert str(caught.value).isprintable()


def test_a_plan_needs_no_id(agent: scripted.ScriptedAgent, client: Client) -> None:
    agent.handlers["Start"] = lambda _request, _context: pb.StartResponse(rule="any")
    assert client.plan(JobSpec("ls")).rule == "any"


def test_a_whole_id_is_not_looked_up(agent: scripted.ScriptedAgent, client: Client) -> None:
    assert client.resolve(ID) == ID
    assert not agent.requests


@pytest.mark.parametrize("text", ["../x", "k7f", "", "K7F3", "k7f3\n", "k7f3-9m2q-x4tz-b1c!", "k" * 20, "lost"])
def test_what_cannot_be_an_id_is_not_looked_up(agent: scripted.ScriptedAgent, client: Client, text: str) -> None:
    with pytest.raises(InvalidField):
        client.resolve(text)
    assert not agent.requests


def test_a_prefix_stands_for_the_one_job_that_has_it(agent: scripted.ScriptedAgent, client: Client) -> None:
    found: list[str] = []
    agent.handlers["List"] = lambda _request, _context: pb.ListResponse(
        jobs=[job_pb2.Job(id=each) for each in found]
    )
    with pytest.raises(JobNotFound):
        client.resolve("k7f3")
    found.append(ID)
    assert client.resolve("k7f3") == ID
    found.append(OTHER)
    with pytest.raises(AmbiguousId) as caught:
        client.resolve("k7f3-9")
    assert caught.value.candidates == (ID, OTHER)
    assert [request.id_prefix for request in agent.requests] == ["k7f3", "k7f3", "k7f3-9"]


def test_an_agent_that_does_not_answer_is_told(agent: scripted.ScriptedAgent) -> None:
    over = threading.Event()

    def silence(_request: pb.QueryRequest, context: grpc.ServicerContext) -> pb.QueryResponse:
        context.add_callback(over.set)
        over.wait()
        return pb.QueryResponse()

    agent.handlers["Query"] = silence
    with connect(agent.endpoint(), timeout=1) as client, pytest.raises(CallFailed, match="did not answer in time"):
        client.query(ID)


def test_agent_info(agent: scripted.ScriptedAgent, client: Client) -> None:
    agent.handlers["GetAgentInfo"] = lambda _request, _context: pb.GetAgentInfoResponse(version="1.2.3")
    assert client.agent_info().version == "1.2.3"


def test_a_connection_that_never_came_about_is_explained(agent: scripted.ScriptedAgent) -> None:
    good = agent.endpoint()
    agent.close()
    with connect(good) as client, pytest.raises(TlsProblem, match="nobody listens"):
        client.query(ID)


def test_a_client_that_is_not_let_in_is_told_why(agent: scripted.ScriptedAgent, tmp_path: str) -> None:
    files = certs.odd_clients()["foreign_ca"].save(tmp_path, "foreign")
    endpoint = Endpoint(agent.endpoint().addr, files.ca, files.cert, files.key)
    with connect(endpoint) as client, pytest.raises(TlsProblem, match=r"foreign\.pem"):
        client.query(ID)
    with connect(endpoint) as client, pytest.raises(TlsProblem, match=r"foreign\.pem"):
        list(client.stream(ID))


def test_a_connection_that_worked_is_not_explained_by_tls(agent: scripted.ScriptedAgent, client: Client) -> None:
    def refuse(_request: object, context: grpc.ServicerContext) -> None:
        scripted.fail(context, "NOT_FOUND", "JOB_NOT_FOUND", "no such job")

    agent.handlers["Stop"] = refuse
    with pytest.raises(CallFailed, match="no such job"):
        client.stop(ID)
    agent.close()
    with pytest.raises(CallFailed) as caught:
        client.stop(ID)
    assert caught.value.code == "UNAVAILABLE"
    assert f"cannot reach the agent at 127.0.0.1:{agent.port}" in str(caught.value)


def test_a_call_that_got_through_is_not_called_a_connection_that_never_came_about(
    agent: scripted.ScriptedAgent,
) -> None:
    with scripted.breaking_wire(agent.port, repeat(sys.maxsize)) as wire:

        def die(_request: object, context: grpc.ServicerContext) -> pb.StartResponse:
            gone = threading.Event()
            context.add_callback(gone.set)
            wire.cut()
            gone.wait(10)
            return pb.StartResponse()

        agent.handlers["Start"] = die
        with connect(agent.endpoint(wire.port)) as client:
            for key in ("", "key"):
                with pytest.raises(CallFailed) as caught:
                    client.start(JobSpec("make"), idempotency_key=key)
                assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "")
    assert len(agent.requests) == 1


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda client: client.stream(ID, offset=-1), "offset"),
        (lambda client: client.stream(ID, offset=2**64), "offset"),
        (lambda client: client.stream(ID, tail_lines=-1), "tail_lines"),
        (lambda client: client.stream(ID, tail_lines=2**32), "tail_lines"),
        (lambda client: client.write_stdin(ID, [], offset=2**64), "offset"),
    ],
)
def test_numbers_that_there_cannot_be_are_not_sent(
    agent: scripted.ScriptedAgent, client: Client, call: Callable[[Client], object], field: str
) -> None:
    with pytest.raises(InvalidField) as caught:
        call(client)
    assert caught.value.field == field
    assert not agent.requests


def test_a_detail_that_cannot_be_read_leaves_the_plain_status(
    agent: scripted.ScriptedAgent, client: Client
) -> None:
    def corrupt(_request: pb.QueryRequest, context: grpc.ServicerContext) -> None:
        detail = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")
        status = status_pb2.Status(code=5, message="gone", details=[detail])
        context.abort_with_status(rpc_status.to_status(status))

    agent.handlers["Query"] = corrupt
    with pytest.raises(CallFailed) as caught:
        client.query(ID)
    assert (caught.value.code, caught.value.reason, caught.value.message) == ("NOT_FOUND", "", "gone")


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_input_that_cannot_be_had_ends_its_call(
    agent: scripted.ScriptedAgent, client: Client, failure: type[BaseException]
) -> None:
    begun, over = threading.Event(), threading.Event()

    def stall(messages: Iterator[pb.WriteStdinRequest], context: grpc.ServicerContext) -> Iterator[Any]:
        next(messages)
        context.add_callback(over.set)
        yield pb.WriteStdinResponse()
        begun.set()
        over.wait(30)

    def pieces() -> Iterator[bytes]:
        yield b"some"
        assert begun.wait(10)
        raise failure

    agent.handlers["WriteStdin"] = stall
    with pytest.raises(failure):
        client.write_stdin(ID, pieces())
    assert over.wait(10)


@pytest.mark.parametrize(
    "addr", ["localhost", "unix:/run/x", "host:0", "host:65536", "xds:///a:1", "a b:1", ":1", ""]
)
def test_an_address_is_host_and_port(addr: str) -> None:
    files = certs.dev_pki().files("writer")
    with pytest.raises(InvalidField, match="HOST:PORT"):
        connect(Endpoint(addr, files.ca, files.cert, files.key))


def test_a_host_may_be_called_as_a_scheme_of_grpc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = certs.dev_pki().files("writer")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("7443")
        listener.listen()
        listener.setblocking(False)
        client = connect(Endpoint("unix:7443", files.ca, files.cert, files.key))
        with client, pytest.raises(TlsProblem, match="the host unix is not known"):
            client.query(ID)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_an_address_may_be_of_ipv6() -> None:
    try:
        agent = scripted.ScriptedAgent(host="[::1]")
    except RuntimeError:
        pytest.skip("this host has no IPv6")
    with contextlib.closing(agent), connect(agent.endpoint()) as client:
        agent.handlers["GetAgentInfo"] = lambda _request, _context: pb.GetAgentInfoResponse(version="1.2.3")
        assert client.agent_info().version == "1.2.3"
        agent.close()
        with pytest.raises(CallFailed) as caught:
            client.drain()
    assert str(caught.value).startswith(f"cannot reach the agent at [::1]:{agent.port}: ")


@pytest.mark.parametrize("connect_timeout", [5.0, 1e9, math.inf])
@pytest.mark.parametrize("seconds", [1e10, 1e300, math.inf])
def test_a_time_out_may_be_as_long_as_one_likes(
    agent: scripted.ScriptedAgent, seconds: float, connect_timeout: float
) -> None:
    job = job_pb2.Job(id=ID, state=job_pb2.JOB_STATE_ENDED)
    agent.handlers["Query"] = lambda _request, _context: pb.QueryResponse(job=job)
    agent.handlers["GetAgentInfo"] = lambda _request, _context: pb.GetAgentInfoResponse()
    agent.handlers["Watch"] = lambda _request, _context: iter([pb.WatchResponse(job=job)])
    with connect(agent.endpoint(), timeout=seconds, connect_timeout=connect_timeout) as client:
        client.reach()
        assert client.query(ID) == job
        assert client.wait([ID], timeout=seconds) == [job]


@pytest.mark.parametrize(("timeout", "connect_timeout", "broken"), [(3600.0, 0.5, 0), (2.0, 3600.0, 1)])
def test_why_there_is_no_connection_is_looked_for_within_the_time_given(
    timeout: float, connect_timeout: float, broken: int
) -> None:
    """So many connections are broken off, and the others silent."""
    connections = count()

    def talk(connection: socket.socket) -> None:
        silent = next(connections) >= broken
        while silent and connection.recv(65_536):
            pass

    files = certs.dev_pki().files("writer")
    with tls_servers.serving(talk) as addr:
        endpoint = Endpoint(addr, files.ca, files.cert, files.key)
        client = connect(endpoint, timeout=timeout, connect_timeout=connect_timeout)
        with client, pytest.raises(TlsProblem, match="does not answer a TLS handshake"):
            client.query(ID)


def test_an_agent_is_reached_when_it_answers_whatever_it_says(
    agent: scripted.ScriptedAgent, client: Client
) -> None:
    agent.handlers["GetAgentInfo"] = lambda _request, context: scripted.fail(
        context, "PERMISSION_DENIED", "NO", "no"
    )
    client.reach()
    agent.close()
    with connect(agent.endpoint()) as other, pytest.raises(TlsProblem, match="nobody listens"):
        other.reach()


def test_an_agent_that_says_nothing_is_not_reached_in_time(agent: scripted.ScriptedAgent) -> None:
    go_on = threading.Event()
    agent.handlers["GetAgentInfo"] = lambda _request, _context: go_on.wait(60) and pb.GetAgentInfoResponse()
    with connect(agent.endpoint(), connect_timeout=0.5) as client, pytest.raises(CallFailed) as raised:
        client.reach()
    go_on.set()
    assert (raised.value.code, "did not answer in time" in str(raised.value)) == ("DEADLINE_EXCEEDED", True)

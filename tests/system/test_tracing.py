"""Traces of calls: from a client's span over the gateway's to the launch, at a collector."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client import Endpoint, aio, connect
from jobworker.client.failures import CallFailed
from jobworker.errors import InvalidField
from jobworker.jobs import JobSpec
from support.agent import Agent, running_agent
from support.certs import Files
from support.collector import Collector, attributes, collector
from support.gateway import channel
from support.root_side import own_uids

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "hunter2-and-more"
TRACER = TracerProvider(shutdown_on_exit=False).get_tracer("tests")


@pytest.fixture(scope="module")
def collecting() -> Iterator[Collector]:
    with collector() as running:
        yield running


@pytest.fixture(scope="module")
def agent(collecting: Collector) -> Iterator[Agent]:
    jobs = f"jobs: {{first_uid: {own_uids()}}}\nisolation: {{missing: report}}\n"
    with running_agent(f"{jobs}tracing: {{endpoint: 'http://{collecting.address}', ratio: 0%}}\n") as running:
        yield running


def endpoint(agent: Agent) -> Endpoint:
    return Endpoint(
        agent.addr, *(os.path.join(agent.pki_dir, name) for name in ("ca.pem", "writer.pem", "writer.key"))
    )


def traceparent(trace_id: str, flags: str = "01") -> str:
    return f"00-{trace_id}-{PARENT}-{flags}"


def test_a_start_is_told_from_the_clients_span_to_the_launch(agent: Agent, collecting: Collector) -> None:
    spec = JobSpec("/bin/echo", ("--password", SECRET), env=(("TOKEN", SECRET),), labels=(("label", SECRET),))
    with (
        connect(endpoint(agent), request_id="of-a-trace") as client,
        TRACER.start_as_current_span("deploy") as mine,
    ):
        job = client.start(spec)
        context = mine.get_span_context()
    told = collecting.of_trace(f"{context.trace_id:032x}", 2)
    start, launch = told["Start"], told["launch"]
    assert start.parent_span_id.hex() == f"{context.span_id:016x}"
    assert launch.parent_span_id == start.span_id
    assert (start.name, start.kind) == ("jobworker.api.v1.JobWorkerService/Start", Span.SPAN_KIND_SERVER)
    assert attributes(start) == {
        "rpc.system": "grpc",
        "rpc.service": "jobworker.api.v1.JobWorkerService",
        "rpc.method": "Start",
        "rpc.grpc.status_code": 0,
        "jobworker.role": "WRITER",
        "jobworker.request_id": "of-a-trace",
        "jobworker.job_id": job.id,
    }
    times = {event.name: event.time_unix_nano for event in launch.events}
    assert times == {"created": job.created_at.ToNanoseconds(), "started": job.started_at.ToNanoseconds()}
    assert (
        start.start_time_unix_nano
        <= launch.start_time_unix_nano
        <= times["created"]
        <= times["started"]
        <= launch.end_time_unix_nano
        <= start.end_time_unix_nano
    )
    sent = b"".join(request.SerializeToString() for request in collecting.requests)
    for what in (SECRET, "echo", "TOKEN", "spiffe:", "writer", "127.0.0.1"):
        assert what.encode() not in sent


def test_the_agent_names_itself(agent: Agent, collecting: Collector) -> None:
    agent.cli("list", check=True)
    with connect(endpoint(agent), traceparent=traceparent("a" * 32)) as client:
        client.agent_info()
    collecting.of_trace("a" * 32, 1)
    named = {
        each.key: each.value.string_value for each in collecting.requests[-1].resource_spans[0].resource.attributes
    }
    assert (named["service.name"], named["host.name"]) == ("jobworker", os.uname().nodename)


def test_a_launch_that_fails_says_of_what_kind(agent: Agent, collecting: Collector) -> None:
    with connect(endpoint(agent), traceparent=traceparent("b" * 32)) as client, pytest.raises(CallFailed):
        client.start(JobSpec(f"/{SECRET}"))
    told = collecting.of_trace("b" * 32, 2)
    assert attributes(told["launch"]) == {"error.type": "StartFailed"}
    assert told["launch"].status.code == Status.STATUS_CODE_ERROR
    # It is the client's.
    assert told["Start"].status.code == Status.STATUS_CODE_UNSET
    assert attributes(told["Start"])["jobworker.reason"]
    assert SECRET.encode() not in b"".join(request.SerializeToString() for request in collecting.requests)


def test_a_key_that_leads_to_a_job_that_is_there_launches_none(agent: Agent, collecting: Collector) -> None:
    with connect(endpoint(agent), traceparent=traceparent("c" * 32)) as client:
        first = client.start(JobSpec("/bin/true"), idempotency_key="once")
    with connect(endpoint(agent), traceparent=traceparent("d" * 32)) as client:
        assert client.start(JobSpec("/bin/true"), idempotency_key="once").id == first.id
        client.plan(JobSpec("/bin/true"))
    assert len(collecting.of_trace("c" * 32, 2)["launch"].events) == 2
    (launch,) = [span for span in collecting.of_trace("d" * 32, 3).values() if span.name == "launch"]
    assert (list(launch.events), attributes(launch)) == ([], {"jobworker.existing": True})


def test_streams_and_asyncio_have_spans_as_well(agent: Agent, collecting: Collector) -> None:
    job = agent.start_job("echo", "hello")

    async def call() -> None:
        async with aio.connect(endpoint(agent), traceparent=traceparent("e" * 32)) as client:
            await client.query(job)
            assert [piece async for piece in client.stream(job)]

    asyncio.run(call())
    told = collecting.of_trace("e" * 32, 2)
    assert {name: attributes(span)["jobworker.job_id"] for name, span in told.items()} == {
        "Query": job,
        "Stream": job,
    }


def test_what_is_written_belongs_to_the_span_of_who_writes(agent: Agent, collecting: Collector) -> None:
    with connect(endpoint(agent)) as client:
        job = client.start(JobSpec("/bin/cat", stdin_open=True)).id
        with TRACER.start_as_current_span("writing") as mine:
            client.write_stdin(job, [b"hello"])
    told = collecting.of_trace(f"{mine.get_span_context().trace_id:032x}", 1)
    assert attributes(told["WriteStdin"])["jobworker.job_id"] == job


def test_the_command_line_hands_on_the_span_that_it_is_run_in(
    agent: Agent, collecting: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", traceparent(TRACE))
    agent.start_job("true")
    told = collecting.of_trace(TRACE, 2)
    assert told["Start"].parent_span_id.hex() == PARENT


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "nonsense",
        traceparent("0" * 32),
        traceparent("1" * 32, "00"),
        traceparent("F" * 32),
        "00-" + "1" * 4000,
    ],
)
def test_what_is_not_to_be_traced_is_not(
    agent: Agent, collecting: Collector, monkeypatch: pytest.MonkeyPatch, sent: str
) -> None:
    # The command line says nothing of what it can't use, and the gateway takes it from nobody.
    monkeypatch.setenv("TRACEPARENT", sent)
    agent.cli("list", "--request-id", "not-traced", check=True)
    files = Files(*(os.path.join(agent.pki_dir, name) for name in ("ca.pem", "writer.pem", "writer.key")))
    with channel(agent.addr, files) as connection:
        call = connection.unary_unary(
            "/jobworker.api.v1.JobWorkerService/List",
            pb.ListRequest.SerializeToString,
            pb.ListResponse.FromString,
        )
        call(pb.ListRequest(), metadata=(("traceparent", sent), ("x-request-id", "not-traced")))
    behind = os.urandom(16).hex()
    with connect(endpoint(agent), traceparent=traceparent(behind)) as client:
        client.agent_info()
    # Spans come in the order in which their calls ended.
    collecting.of_trace(behind, 1)
    assert not [span for span in collecting.spans if attributes(span).get("jobworker.request_id") == "not-traced"]


def test_a_refusal_is_told_without_who_asked(agent: Agent, collecting: Collector) -> None:
    files = Files(*(os.path.join(agent.pki_dir, name) for name in ("ca.pem", "reader.pem", "reader.key")))
    with channel(agent.addr, files) as connection:
        for method in ("jobworker.api.v1.JobWorkerService/Stop", f"made.up/{SECRET}"):
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = connection.unary_unary(f"/{method}")
            with pytest.raises(grpc.RpcError):
                call(b"", metadata=(("traceparent", traceparent("9" * 32)), ("x-request-id", "refused")))
    told = collecting.of_trace("9" * 32, 2)
    assert set(told) == {"Stop", "unknown"}
    for span in told.values():
        assert attributes(span)["jobworker.reason"] == "PERMISSION_DENIED"
        assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.PERMISSION_DENIED.value[0]


def test_a_span_of_the_program_goes_before_what_it_was_told(agent: Agent, collecting: Collector) -> None:
    with connect(endpoint(agent), traceparent=traceparent("8" * 32)) as client:
        with TRACER.start_as_current_span("inner") as mine:
            client.agent_info()
        assert not trace.get_current_span().get_span_context().is_valid
        client.agent_info()
    collecting.of_trace(f"{mine.get_span_context().trace_id:032x}", 1)
    collecting.of_trace("8" * 32, 1)


def test_the_library_refuses_what_names_no_span(agent: Agent) -> None:
    with pytest.raises(InvalidField, match="traceparent"):
        connect(endpoint(agent), traceparent="nonsense")

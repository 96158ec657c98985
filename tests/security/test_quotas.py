"""Quotas as callers meet them, over TLS against a real gateway: one is refused, and what is its own alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # has no types
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.settings.schema import MetricsSettings, QuotaSettings
from jobworker.wire.messages import InspectJob, ReportCalls, StartJob, StopJob
from support import gateway
from support.scripted_supervisor import SILENCE, ScriptedSupervisor, job_id, record
from support.waiting import until

QUERY = pb.QueryRequest(job_id=job_id(1))
FOLLOW = pb.StreamRequest(job_id=job_id(1), follow=True)
WRITER = "spiffe://dev.jobworker.internal/user/writer"

Start = Callable[..., gateway.Gateway]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[ScriptedSupervisor]:
    scripted = ScriptedSupervisor(str(tmp_path))
    scripted.records = [record(1)]
    yield scripted
    scripted.close()


@pytest.fixture
def start(supervisor: ScriptedSupervisor, tmp_path: Path) -> Iterator[Start]:
    """Start the gateway with these quotas."""
    running: list[gateway.Gateway] = []

    def started(**quotas: int) -> gateway.Gateway:
        wanted = replace(gateway.settings(str(tmp_path)), quotas=QuotaSettings(**quotas))
        wanted = replace(wanted, metrics=MetricsSettings("127.0.0.1:0", plain_http=True))
        running.append(gateway.Gateway(str(tmp_path), wanted))
        assert supervisor.connected.wait(gateway.DEADLINE)
        return running[0]

    yield started
    assert running[0].stop() == 0, running[0].log()


def told(error: Any) -> tuple[str, str, dict[str, str]]:
    info = gateway.detail(error, error_details_pb2.ErrorInfo())
    return gateway.code(error), info.reason, dict(info.metadata)


def refusal(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def test_open_streams(start: Start) -> None:
    running = start(streams=2)
    with running.stub() as stub, running.stub(name="reader") as other:
        streams: list[Any] = [stub.Stream(FOLLOW), stub.Watch(pb.WatchRequest())]
        for stream in streams:
            stream.initial_metadata()
        error = refusal(lambda: next(stub.Stream(FOLLOW)))
        fields = {"quota": "streams", "limit": "2", "present": "2", "retry_ms": "0"}
        assert told(error) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", fields)
        assert gateway.detail(error, error_details_pb2.RetryInfo()) is None
        assert "you have 2 open streams, and one principal may have 2" in error.details()
        another = other.Stream(FOLLOW)
        another.initial_metadata()
        assert stub.Query(QUERY).job.id == job_id(1)
        assert series(running, "jobworker_streams_open") == 3
        assert series(running, 'jobworker_quota_refusals_total{quota="streams"}') == 1


def test_a_stream_that_breaks_gives_its_place_back(start: Start) -> None:
    running = start(streams=2)
    for _ in range(5):
        with running.stub() as stub:
            streams: list[Any] = [stub.Stream(FOLLOW), stub.Watch(pb.WatchRequest())]
            for stream in streams:
                stream.initial_metadata()
        # The connection is gone, which the gateway hears of a moment later.
        until(lambda: series(running, "jobworker_streams_open"), 0)


def test_so_does_a_call_whose_client_goes_away(start: Start, supervisor: ScriptedSupervisor) -> None:
    running = start(calls=1)
    supervisor.handlers[InspectJob] = lambda _: SILENCE
    with running.stub() as stub:
        waiting = stub.Query.future(QUERY)
        supervisor.wait_asked(InspectJob)
        error = refusal(lambda: stub.List(pb.ListRequest()))
        assert told(error)[2] == {"quota": "calls", "limit": "1", "present": "1", "retry_ms": "200"}
        assert gateway.detail(error, error_details_pb2.RetryInfo()).retry_delay.ToMilliseconds() == 200
        waiting.cancel()
        running.wait_for_calls("/Query", 1)
        assert len(stub.List(pb.ListRequest()).jobs) == 1


def test_calls_a_second(start: Start) -> None:
    running = start(calls_per_second=1, calls_burst=3)
    with running.stub() as stub, running.stub(name="reader") as other:
        errors = [refusal_of(lambda: stub.List(pb.ListRequest())) for _ in range(20)]
        assert errors[:3] == [None] * 3
        error = next(filter(None, errors))
        code, reason, fields = told(error)
        assert (code, reason, fields["quota"]) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "calls_per_second")
        assert fields["limit"] == "1"
        assert int(fields["present"]) >= 1
        delay = gateway.detail(error, error_details_pb2.RetryInfo()).retry_delay
        assert 0 < delay.ToMilliseconds() <= 1000
        assert "try again in" in error.details()
        assert len(other.List(pb.ListRequest()).jobs) == 1


def refusal_of(call: Callable[[], Any]) -> Any:
    try:
        call()
    except grpc.RpcError as error:
        return error
    return None


def test_before_the_request_is_read(start: Start) -> None:
    """Not even one that never comes."""
    running = start(calls_per_second=1, calls_burst=1)
    with running.channel() as channel, gateway.silence() as nothing:
        call: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(
            "/jobworker.api.v1.JobWorkerService/Start"
        )
        refusal(lambda: call(iter([b"\xff"]), timeout=30))
        assert told(refusal(lambda: call(nothing, timeout=30)))[1] == "QUOTA_EXCEEDED"


def test_stop_signal_and_health_have_budgets_of_their_own(start: Start, supervisor: ScriptedSupervisor) -> None:
    running = start(calls=1, calls_per_second=1, calls_burst=5)
    supervisor.handlers[StartJob] = lambda _: SILENCE
    with running.channel() as channel, running.stub() as stub:
        waiting = stub.Start.future(pb.StartRequest(command="true"))
        supervisor.wait_asked(StartJob)
        refused = [refusal(lambda: stub.List(pb.ListRequest())) for _ in range(10)]
        assert {told(error)[1] for error in refused} == {"QUOTA_EXCEEDED"}
        stub.Stop(pb.StopRequest(job_id=job_id(1), no_wait=True))
        assert supervisor.asked(StopJob) == 1
        stub.Signal(pb.SignalRequest(job_id=job_id(1), signal="HUP"))
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        assert len(health.List(health_pb2.HealthListRequest()).statuses) == 2
        assert waiting.cancel()
        # Their own, and no more than that.
        errors = [refusal_of(lambda: health.Check(health_pb2.HealthCheckRequest())) for _ in range(20)]
        assert told(next(filter(None, errors)))[2]["quota"] == "urgent_calls_per_second"


def test_a_flood_of_refusals_is_no_flood_of_lines(start: Start, supervisor: ScriptedSupervisor) -> None:
    running = start(calls_per_second=1, calls_burst=1)
    number = 200
    with running.stub() as stub:
        refused = sum(refusal_of(lambda: stub.List(pb.ListRequest())) is not None for _ in range(number))
    assert refused > number // 2

    def reports() -> list[Any]:
        asked = [each for each in supervisor.requests if isinstance(each, ReportCalls)]
        return [call for each in asked for call in each.calls if call.reason == "QUOTA_EXCEEDED"]

    lines = [line for line in running.calls("/List") if line["code"] == "RESOURCE_EXHAUSTED"]
    assert 0 < len(lines) < 20
    until(lambda: len(reports()), len(lines))
    for report in reports():
        assert (report.allowed, report.caller.principal) == (False, WRITER)
        assert "you have" in report.detail
    told_of = sum(1 + int((re.findall(r"\((\d+) more", line["detail"]) or [0])[0]) for line in lines)
    assert told_of <= refused
    assert series(running, 'jobworker_quota_refusals_total{quota="calls_per_second"}') == refused


def series(running: gateway.Gateway, name: str) -> float:
    return gateway.metrics(running).get(name, 0.0)

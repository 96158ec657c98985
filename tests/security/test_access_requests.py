"""Requests that are not as they should be, and what comes back of them: a status, and nothing of the inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.wire.messages import Done, InspectJob
from support import gateway
from support.scripted_supervisor import ScriptedSupervisor, job_id, record

START = "/jobworker.api.v1.JobWorkerService/Start"
QUERY = pb.QueryRequest(job_id=job_id(1))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateway.Gateway]:
    with gateway.gateway(tmp_path_factory.mktemp("gateway")) as started:
        yield started


def send(running: gateway.Gateway, data: bytes, **options: Any) -> Any:
    with running.channel() as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(START)
        with pytest.raises(grpc.RpcError) as caught:
            call(data, timeout=30, **options)
    return caught.value


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe", b"\x00" * 100])
def test_malformed_bytes(running: gateway.Gateway, data: bytes) -> None:
    error = send(running, data)
    assert (gateway.code(error), gateway.violated_field(error)) == ("INVALID_ARGUMENT", "request")


def test_an_unknown_field(running: gateway.Gateway) -> None:
    request = pb.StartRequest(command="true")
    request.limits.cpu = "50%"
    inside = request.SerializeToString().replace(b"\x2a\x05\x0a\x0350%", b"\x2a\x08\x0a\x0350%\xf8\x3f\x01")
    for data, path in ((request.SerializeToString() + b"\xf8\x3f\x01", "1023"), (inside, "limits.1023")):
        error = send(running, data)
        assert (gateway.code(error), gateway.violated_field(error)) == ("INVALID_ARGUMENT", path)
        assert "upgrade the agent or drop it" in error.details()


def test_a_request_that_is_too_large(running: gateway.Gateway) -> None:
    error = send(running, pb.StartRequest(args=["x" * 100_000] * 11).SerializeToString())
    assert gateway.code(error) == "RESOURCE_EXHAUSTED"


def test_a_request_that_would_become_too_large(running: gateway.Gateway) -> None:
    """64 MiB that are 64 KiB on the wire: refused before they are anything like that in memory."""
    error = send(running, bytes(64 * 1024 * 1024), compression=grpc.Compression.Gzip)
    assert gateway.code(error) in ("RESOURCE_EXHAUSTED", "UNIMPLEMENTED")
    assert running.memory_kib("VmHWM") < 100 * 1024


def test_metadata_that_is_too_large(running: gateway.Gateway) -> None:
    error = send(running, b"", metadata=(("x", "y" * 64 * 1024),))
    assert gateway.code(error) == "RESOURCE_EXHAUSTED"


def test_a_request_that_never_comes(running: gateway.Gateway) -> None:
    """The call is ended from this side; without that, anyone could hold calls open for nothing."""
    with running.channel() as channel:
        call: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(START)
        with gateway.silence() as nothing, pytest.raises(grpc.RpcError) as caught:
            call(nothing, timeout=60)
    assert (gateway.code(caught.value), gateway.violated_field(caught.value)) == ("INVALID_ARGUMENT", "request")


def test_no_request_at_all(running: gateway.Gateway) -> None:
    with running.channel() as channel:
        call: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(START)
        with pytest.raises(grpc.RpcError) as caught:
            call(iter(()), timeout=30)
    assert (gateway.code(caught.value), gateway.violated_field(caught.value)) == ("INVALID_ARGUMENT", "request")


def test_the_text_of_an_unexpected_error_stays_inside(tmp_path: Path) -> None:
    """The supervisor says what no good one does."""
    supervisor = ScriptedSupervisor(str(tmp_path))
    supervisor.records = [record(1)]
    supervisor.handlers[InspectJob] = lambda _: Done()
    try:
        with gateway.gateway(tmp_path) as running, running.stub() as stub:
            with pytest.raises(grpc.RpcError) as caught:
                stub.Query(QUERY)
            error: Any = caught.value
            assert (gateway.code(error), gateway.reason(error)) == ("INTERNAL", "INTERNAL")
            assert "internal error" in str(error.details())
            assert "Done" not in repr(error)
            assert "Done in place of JobReply" in running.log()
    finally:
        supervisor.close()

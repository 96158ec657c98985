"""Output of real jobs as TEXT and JSON, and compressed, over mutual TLS."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from support import certs, gateway, root_side, scripted

Stub = JobWorkerServiceStub
TEXT, JSON = pb.OUTPUT_FORMAT_TEXT, pb.OUTPUT_FORMAT_JSON
GZIP = (("jobworker-compression", "gzip"),)
SEGMENT_BYTES = 256 * 1024


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateway.Gateway]:
    directory = tmp_path_factory.mktemp("root")
    with (
        root_side.root_side(str(directory), segment_bytes=SEGMENT_BYTES) as side,
        gateway.gateway(tmp_path_factory.mktemp("gateway"), gateway.behind(side.settings)) as started,
    ):
        yield started


def start(stub: Stub, script: str) -> job_pb2.Job:
    return stub.Start(pb.StartRequest(command="sh", args=["-c", script])).job


def stream(stub: Stub, job: job_pb2.Job, **fields: Any) -> list[pb.StreamResponse]:
    return list(stub.Stream(pb.StreamRequest(job_id=job.id, **fields)))


def text(responses: list[pb.StreamResponse]) -> bytes:
    return b"".join(response.chunk.data or response.end.data for response in responses)


def test_lines_of_two_sources_are_never_mixed(stub: Stub) -> None:
    job = start(stub, "printf a; sleep 0.05; echo error >&2; sleep 0.05; printf 'b\\n\\377'")
    assert text(stream(stub, job, follow=True, format=TEXT)) == b"error\nab\n\\xff\n"
    lines = [json.loads(line) for line in text(stream(stub, job, format=JSON)).splitlines()]
    assert [(line["source"], line.get("text"), line.get("base64")) for line in lines] == [
        ("STDERR", "error", None),
        ("STDOUT", "ab", None),
        ("STDOUT", None, "/w=="),
    ]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert text(stream(stub, job, format=TEXT, source=pb.OUTPUT_SOURCE_STDERR)) == b"error\n"
    stamped = text(stream(stub, job, format=TEXT, timestamps=True)).splitlines()
    assert stamped[0] == lines[0]["time"][:23].encode() + b"Z error"


def test_a_follower_waits_for_the_line_and_is_not_held_up_by_the_other_source(stub: Stub) -> None:
    job = start(stub, "printf prompt; for i in 1 2 3; do echo $i >&2; sleep 0.05; done; read line; echo ' end'")
    *chunks, end = stream(stub, job, follow=True, format=TEXT)
    assert text(chunks) == b"1\n2\n3\nprompt end\n"
    assert end.end == pb.OutputEnd(offset=17, output_ended=True)


def test_as_many_lines_over_segments_as_were_written(stub: Stub) -> None:
    job = start(stub, "seq 200000")
    expected = "".join(f"{number}\n" for number in range(1, 200_001)).encode()
    live = stream(stub, job, follow=True, format=TEXT)
    assert text(live) == expected
    chunks = [response.chunk for response in live[:-1]]
    assert all(chunk.data.endswith(b"\n") for chunk in chunks)
    at = 0
    for chunk in chunks:
        assert chunk.offset == at
        at = chunk.resume_offset
    assert at == live[-1].end.offset == len(expected)
    later = stream(stub, job, offset=chunks[3].resume_offset, format=TEXT)
    assert text(later) == expected[chunks[3].resume_offset :]
    objects = text(stream(stub, job, format=JSON)).splitlines()
    assert "".join(json.loads(line)["text"] + "\n" for line in objects).encode() == expected


def test_the_last_lines_and_where_they_begin(stub: Stub) -> None:
    job = start(stub, "seq 100; printf rest")
    stream(stub, job, follow=True)
    begin, *others = stream(stub, job, tail_lines=3, format=TEXT)
    assert begin.chunk == pb.OutputChunk(offset=285, resume_offset=285)
    assert text(others) == b"99\n100\nrest\n"


@pytest.mark.parametrize(("fields", "named"), [({"format": 9}, "format"), ({"source": 9, "format": 2}, "source")])
def test_a_format_that_is_none_is_refused(stub: Stub, fields: dict[str, Any], named: str) -> None:
    job = start(stub, "true")
    with pytest.raises(grpc.RpcError) as caught:
        stream(stub, job, **fields)
    assert gateway.code(caught.value) == "INVALID_ARGUMENT"
    assert gateway.violated_field(caught.value) == named


# Compression.


def carried(running: gateway.Gateway, job: job_pb2.Job, *metadata: tuple[str, str]) -> tuple[int, bytes]:
    """How many bytes came over the network, and the output that was in them."""
    port = int(running.address.rpartition(":")[2])
    with scripted.breaking_wire(port, itertools.repeat(1 << 40)) as wire:
        with gateway.channel(f"127.0.0.1:{wire.port}", certs.dev_pki().files("reader")) as channel:
            answers = Stub(channel).Stream(pb.StreamRequest(job_id=job.id), metadata=metadata)
            data = b"".join(answer.chunk.data for answer in answers)
        return wire.brought, data


def test_answers_are_compressed_for_who_asks(running: gateway.Gateway, stub: Stub) -> None:
    job = start(stub, "seq 100000")
    stream(stub, job, follow=True)
    plain, data = carried(running, job)
    assert len(data) == 588_895
    assert plain > len(data)
    assert carried(running, job, ("jobworker-compression", "identity"))[0] > len(data)
    small, same = carried(running, job, *GZIP)
    assert same == data
    assert small < len(data) // 2


def test_a_live_stream_is_compressed_as_it_comes(stub: Stub) -> None:
    job = start(stub, "for i in 1 2 3; do echo $i; sleep 0.02; done")
    request = pb.StreamRequest(job_id=job.id, follow=True, format=TEXT)
    assert text(list(stub.Stream(request, metadata=GZIP))) == b"1\n2\n3\n"
    watch = stub.Watch(pb.WatchRequest(job_ids=[job.id], snapshot=True), metadata=GZIP)
    assert next(iter(watch)).job.id == job.id
    watch.cancel()


def test_a_compression_that_is_none_is_refused(stub: Stub) -> None:
    job = start(stub, "true")
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Stream(pb.StreamRequest(job_id=job.id), metadata=(("jobworker-compression", "zstd"),)))
    assert gateway.code(caught.value) == "INVALID_ARGUMENT"
    assert gateway.violated_field(caught.value) == "jobworker-compression"

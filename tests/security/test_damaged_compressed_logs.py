"""Compressed segments that others damage: a gap with its range and its reason, and the rest is served."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.wire.compressed_segment import BLOCK_BYTES
from support import root_side
from support.waiting import until

Stub = JobWorkerServiceStub
SEGMENT_BYTES = 4 * BLOCK_BYTES
SECRET = b"a secret of the host\n"
LINES = 100_000
WRITTEN = b"".join(b"%d\n" % number for number in range(1, LINES + 1))
WAYS: dict[str, dict[str, Any]] = {
    "bytes": {},
    "bytes with times": {"timestamps": True},
    "bytes of a source": {"source": pb.OUTPUT_SOURCE_STDOUT},
    "text": {"format": pb.OUTPUT_FORMAT_TEXT},
}
DAMAGED = "its compressed file is damaged"


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[root_side.RootSide]:
    directory = str(tmp_path_factory.mktemp("root"))
    with root_side.root_side(directory, segment_bytes=SEGMENT_BYTES, compress_logs=True) as running:
        yield running


@pytest.fixture
def job(stub: Stub) -> job_pb2.Job:
    """One that has ended, with two compressed segments and the open one."""
    started = stub.Start(pb.StartRequest(command="seq", args=[str(LINES)])).job
    list(stub.Stream(pb.StreamRequest(job_id=started.id, follow=True)))
    until(lambda: [plain(started, number).exists() for number in (0, 1)], [False, False])
    return started


def plain(job: job_pb2.Job, number: int) -> Path:
    return Path(f"{job.log_path}.{number}")


def file_of(job: job_pb2.Job) -> Path:
    return Path(f"{job.log_path}.1.gz")


def read(stub: Stub, job: job_pb2.Job, **fields: Any) -> tuple[list[tuple[int, bytes]], list[pb.OutputGap]]:
    """What is served, by offset, and what is told to be missing."""
    chunks, gaps = [], []
    for response in stub.Stream(pb.StreamRequest(job_id=job.id, **fields)):
        if response.WhichOneof("item") == "gap":
            gaps.append(response.gap)
        elif response.chunk.data:
            chunks.append((response.chunk.offset, response.chunk.data))
    return chunks, gaps


def check(stub: Stub, job: job_pb2.Job, missing: range, reason: str) -> None:
    """Whatever way it is read: what is missing is told with its range, and all the rest is served."""
    for name, fields in WAYS.items():
        chunks, gaps = read(stub, job, **fields)
        told = [at for gap in gaps for at in range(gap.offset, gap.offset + gap.length)]
        assert told == list(missing), name
        assert {gap.reason for gap in gaps} == ({reason} if missing else set()), name
        if name != "text":
            served = b"".join(data for _, data in chunks)
            assert served == WRITTEN[: missing.start] + WRITTEN[missing.stop :], name
            assert all(WRITTEN.startswith(data, at) for at, data in chunks)
        assert SECRET[:10] not in b"".join(data for _, data in chunks)


def second_segment(first_block: int = 0, stop_block: int = 4) -> range:
    return range(SEGMENT_BYTES + first_block * BLOCK_BYTES, SEGMENT_BYTES + stop_block * BLOCK_BYTES)


def test_whole_ones_are_served(stub: Stub, job: job_pb2.Job) -> None:
    check(stub, job, range(0), "")
    for offset in (1, SEGMENT_BYTES - 1, SEGMENT_BYTES + 3 * BLOCK_BYTES + 17, 2 * SEGMENT_BYTES):
        chunks, gaps = read(stub, job, offset=offset)
        assert (b"".join(data for _, data in chunks), gaps) == (WRITTEN[offset:], [])


def test_the_last_lines_and_a_source_are_found_in_them(stub: Stub, job: job_pb2.Job) -> None:
    count = 40_000
    chunks, _ = read(stub, job, tail_lines=count)
    assert b"".join(data for _, data in chunks) == b"".join(WRITTEN.splitlines(keepends=True)[-count:])
    assert read(stub, job, source=pb.OUTPUT_SOURCE_STDERR) == ([], [])


def test_an_edited_one(stub: Stub, job: job_pb2.Job) -> None:
    path = file_of(job)
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 8] ^= 0xFF
    path.write_bytes(data)
    check(stub, job, second_segment(1, 2), DAMAGED)


def test_a_truncated_one(stub: Stub, job: job_pb2.Job) -> None:
    os.truncate(file_of(job), file_of(job).stat().st_size * 5 // 8)
    check(stub, job, second_segment(2), DAMAGED)


@pytest.mark.parametrize("data", [b"", b"nothing of the kind", WRITTEN[:SEGMENT_BYTES]])
def test_one_that_is_something_else(stub: Stub, job: job_pb2.Job, data: bytes) -> None:
    file_of(job).write_bytes(data)
    check(stub, job, second_segment(), DAMAGED)


def test_a_link_in_its_place(stub: Stub, job: job_pb2.Job) -> None:
    secret = file_of(job).with_name("secret")
    secret.write_bytes(SECRET * 1000)
    file_of(job).unlink()
    file_of(job).symlink_to(secret)
    (reason,) = {gap.reason for gap in read(stub, job)[1]}
    assert "symbolic links" in reason
    check(stub, job, second_segment(), reason)


def test_none_at_all(stub: Stub, job: job_pb2.Job) -> None:
    file_of(job).unlink()
    (reason,) = {gap.reason for gap in read(stub, job)[1]}
    check(stub, job, second_segment(), reason)

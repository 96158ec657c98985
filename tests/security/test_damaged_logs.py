"""Logs and indexes that others damage while the job writes: told as gaps, never filled with something else."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.wire.output_index import DROPPED, NOT_WRITTEN, REMOVED
from support import gateway, root_side

Stub = JobWorkerServiceStub
SEGMENT_BYTES = 64 * 1024
SECRET = b"a secret of the host\n"
BEFORE, AFTER = 30_000, 40_000
SCRIPT = f"""
trap 'seq {BEFORE + 1} {AFTER}; exit 7' USR1
seq {BEFORE}
while :; do sleep 0.05; done
"""


def seq(first: int, last: int) -> bytes:
    return "".join(f"{number}\n" for number in range(first, last + 1)).encode()


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[root_side.RootSide]:
    with root_side.root_side(str(tmp_path_factory.mktemp("root")), segment_bytes=SEGMENT_BYTES) as running:
        yield running


def halve(path: Path) -> None:
    # In the midst of a line, and of a record.
    os.truncate(path, path.stat().st_size // 2 + 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def link(path: Path) -> None:
    secret = path.with_name("secret")
    secret.write_bytes(SECRET * (path.stat().st_size // len(SECRET)))
    path.unlink()
    path.symlink_to(secret)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def scramble(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))  # noqa: S311 - the same each time


DAMAGES: dict[str, Callable[[Path], None]] = {
    "halved": halve,
    "emptied": empty,
    "removed": Path.unlink,
    "a link": link,
    "a FIFO": fifo,
    "a directory": directory,
}
WAYS: dict[str, dict[str, Any]] = {
    "bytes": {},
    "bytes with times": {"timestamps": True},
    "bytes of a source": {"source": pb.OUTPUT_SOURCE_STDOUT},
    "text": {"format": pb.OUTPUT_FORMAT_TEXT},
    "json": {"format": pb.OUTPUT_FORMAT_JSON},
}


def begun(stub: Stub) -> job_pb2.Job:
    """A job that has written two segments and a half, and waits."""
    job = stub.Start(pb.StartRequest(command="sh", args=["-c", SCRIPT])).job
    size, received = len(seq(1, BEFORE)), 0
    stream = stub.Stream(pb.StreamRequest(job_id=job.id, follow=True))
    for response in stream:
        received += len(response.chunk.data)
        if received == size:
            stream.cancel()
            break
    return job


def read(stub: Stub, job: job_pb2.Job, **fields: Any) -> list[pb.StreamResponse]:
    return list(stub.Stream(pb.StreamRequest(job_id=job.id, **fields)))


def path_of(job: job_pb2.Job, kind: str, suffix: str) -> Path:
    return Path(job.log_path).with_name(f"job_{job.id}.{kind}{suffix}")


def check(stub: Stub, job: job_pb2.Job, written: bytes) -> None:
    """What is served is what was written, and all that is not is a gap."""
    for fields in WAYS.values():
        *responses, end = read(stub, job, **fields)
        assert end.end.offset == len(written)
        assert SECRET[:10] not in b"".join(response.chunk.data for response in responses)
    at = 0
    for response in read(stub, job)[:-1]:
        item = response.chunk if response.WhichOneof("item") == "chunk" else response.gap
        assert item.offset == at
        at += len(response.chunk.data) or response.gap.length
        if response.chunk.data:
            assert response.chunk.data == written[item.offset : at]
    assert at == len(written)


def goes_on(stub: Stub, job: job_pb2.Job) -> None:
    """The job writes the rest, and ends as it means to."""
    stub.Signal(pb.SignalRequest(job_id=job.id, signal="USR1"))
    read(stub, job, follow=True)
    while (known := stub.Query(pb.QueryRequest(job_id=job.id)).job).state != job_pb2.JOB_STATE_ENDED:
        pass
    assert known.exit_code == 7
    assert known.log_bytes == len(seq(1, AFTER))


@pytest.mark.parametrize("suffix", [".0", ".1", ""], ids=["first", "second", "open"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_the_log(running: gateway.Gateway, stub: Stub, damage: str, suffix: str) -> None:
    job = begun(stub)
    DAMAGES[damage](path_of(job, "log", suffix))
    (gap,) = [response.gap for response in read(stub, job) if response.WhichOneof("item") == "gap"]
    (told,) = [json.loads(line) for line in running.log().splitlines() if "is damaged" in line and job.id in line]
    assert (told["offset"], told["length"], told["reason"]) == (gap.offset, gap.length, gap.reason)
    assert gap.reason not in {DROPPED, NOT_WRITTEN}
    assert (gap.reason == REMOVED) == (damage == "removed")
    goes_on(stub, job)
    ended = [response.gap for response in read(stub, job) if response.WhichOneof("item") == "gap"]
    assert suffix == "" or ended == [gap], "once the job has ended, the files tell the same"


@pytest.mark.parametrize("kind", ["log", "idx"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_closed_segment(stub: Stub, damage: str, kind: str) -> None:
    job = begun(stub)
    DAMAGES[damage](path_of(job, kind, ".1"))
    check(stub, job, seq(1, BEFORE))
    goes_on(stub, job)
    written = seq(1, AFTER)
    check(stub, job, written)
    whole = [range(SEGMENT_BYTES), range(2 * SEGMENT_BYTES, len(written))]
    for response in read(stub, job):
        missing = range(response.gap.offset, response.gap.offset + response.gap.length)
        assert not any(set(missing) & set(there) for there in whole)


def test_an_index_that_is_not_one(stub: Stub) -> None:
    job = begun(stub)
    scramble(path_of(job, "idx", ".1"))
    check(stub, job, seq(1, BEFORE))
    goes_on(stub, job)
    check(stub, job, seq(1, AFTER))


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_index_of_the_open_segment(stub: Stub, damage: str) -> None:
    job = begun(stub)
    DAMAGES[damage](path_of(job, "idx", ""))
    check(stub, job, seq(1, BEFORE))
    goes_on(stub, job)
    check(stub, job, seq(1, AFTER))


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_open_segment(side: root_side.RootSide, stub: Stub, damage: str) -> None:
    job, written = begun(stub), seq(1, AFTER)
    DAMAGES[damage](path_of(job, "log", ""))
    check(stub, job, seq(1, BEFORE))
    goes_on(stub, job)
    check(stub, job, written)
    assert served(read(stub, job), at_least=len(seq(1, BEFORE))) == seq(BEFORE + 1, AFTER)
    (told,) = [json.loads(line) for line in side.log().splitlines() if "was cut off" in line and job.id in line]
    assert told["lost_bytes"] == stub.Query(pb.QueryRequest(job_id=job.id)).job.lost_bytes > 0


@pytest.mark.parametrize("way", WAYS)
def test_who_follows_gets_what_is_written_after_the_open_segment_was_removed(stub: Stub, way: str) -> None:
    job, before, gaps = begun(stub), len(seq(1, BEFORE)), []
    for response in stub.Stream(pb.StreamRequest(job_id=job.id, follow=True, **WAYS[way])):
        told = response.chunk.resume_offset or response.chunk.offset + len(response.chunk.data)
        if told == before and path_of(job, "log", "").exists():
            path_of(job, "log", "").unlink()
            stub.Signal(pb.SignalRequest(job_id=job.id, signal="USR1"))
        if response.WhichOneof("item") == "gap":
            gaps.append(response.gap)
    assert response.end.offset == len(seq(1, AFTER))
    assert all(gap.offset + gap.length <= before for gap in gaps)


def served(responses: list[pb.StreamResponse], *, at_least: int) -> bytes:
    """All that is served from an offset on."""
    chunks = [response.chunk for response in responses if response.WhichOneof("item") == "chunk"]
    return b"".join(chunk.data[max(0, at_least - chunk.offset) :] for chunk in chunks)

"""Clients that are cut off again and again while a log is rotated and compressed: each has all of it in the end.

48 MiB; `make load` has a gibibyte.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.gateway.output import CHUNK_BYTES
from support import gateway
from support.certs import dev_pki
from support.follower import following
from support.gateway import Gateway
from support.root_side import RootSide, root_side
from support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

SIZE = int(os.environ.get("JOBWORKER_LOAD_MIB", "48")) << 20
SEGMENT = 1 << 20
CLIENTS, DISCONNECTIONS = 5, 100
# Others may want the CPU first.
_COMPRESSION_SECONDS = 300
# Text, random bytes and both in one segment; the sum goes where it does not get among the output.
JOB = """
import hashlib, os, sys, time
size, digest, number = int(sys.argv[1]), hashlib.sha256(), 0
while size:
    text = b"".join(b"line %d of round %d\\n" % (line, number) for line in range(3000))
    data = (text, os.urandom(1 << 16), text[:9999] + os.urandom(9999))[number // 40 % 3][:size]
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    digest.update(data)
    size, number = size - len(data), number + 1
    time.sleep(0.005)
open("sum", "w").write(digest.hexdigest())
"""


Stream = AbstractContextManager[Iterator[pb.StreamResponse]]


@contextlib.contextmanager
def cancelled(serving: Gateway, request: pb.StreamRequest) -> Iterator[Iterator[pb.StreamResponse]]:
    """A stream that is given up in order, with its connection."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    credentials = gateway.credentials(dev_pki().files("reader"))
    with grpc.secure_channel(serving.address, credentials, options) as channel:
        stream = JobWorkerServiceStub(channel).Stream(request)
        yield stream
        stream.cancel()


@contextlib.contextmanager
def reset(serving: Gateway, request: pb.StreamRequest) -> Iterator[Iterator[pb.StreamResponse]]:
    """A stream whose connection is gone, without a word."""
    with following(serving.address, dev_pki().files("reader"), request, gateway.DEADLINE) as follower:
        yield follower.messages()
        follower.cut()


# How a client leaves, in turn.
LEAVING: tuple[Callable[[Gateway, pb.StreamRequest], Stream], ...] = (cancelled, reset)


@dataclass(frozen=True, slots=True)
class Followed:
    """What a client has had.

    Attributes:
        sha256: of all output.
        cut_off: so often it was in the middle.
    """

    sha256: str
    cut_off: int


def follow(serving: Gateway, side: RootSide, job_id: str, seed: int) -> Followed:
    """Read all of a job's output, leaving and coming back a hundred times."""
    chance, digest = random.Random(seed), hashlib.sha256()  # noqa: S311 - the same each time
    offset = cut_off = 0
    for left in range(DISCONNECTIONS, -1, -1):
        if left == DISCONNECTIONS // 2:
            # What is left for it to read is compressed in part by then.
            until(partial(is_compressed_beyond, side, job_id, offset), wanted=True, seconds=_COMPRESSION_SECONDS)
        enough = how_much(chance, offset, left)
        request = pb.StreamRequest(job_id=job_id, offset=offset, follow=True)
        with LEAVING[seed % len(LEAVING)](serving, request) as messages:
            for message in messages:
                assert not message.gap.length, message.gap
                digest.update(message.chunk.data)
                offset += len(message.chunk.data)
                enough -= len(message.chunk.data)
                if enough < 0:
                    cut_off += offset < SIZE
                    break
    assert offset == SIZE
    return Followed(digest.hexdigest(), cut_off)


def how_much(chance: random.Random, offset: int, left: int) -> int:
    """So much is to be read before one of so many disconnections that are left; none is at the output's end."""
    if not left:
        return SIZE
    # Each time one message more may come.
    return chance.randrange(min(2 * (SIZE - offset) // left, SIZE - offset - left * CHUNK_BYTES))


def is_compressed_beyond(side: RootSide, job_id: str, offset: int) -> bool:
    """Whether a segment is that begins behind this offset."""
    names = Path(side.state_dir, "jobs", job_id, "logs").glob("*.log.*.gz")
    return any(int(name.suffixes[-2][1:]) > offset // SEGMENT for name in names)


def test_whoever_comes_back_has_every_byte_once(tmp_path: Path) -> None:
    with (
        root_side(str(tmp_path), segment_bytes=SEGMENT, compress_logs=True) as side,
        gateway.gateway(tmp_path, gateway.behind(side.settings)) as serving,
    ):
        link = side.link(subscribe=True)
        job = link.start("/usr/bin/python3", "-c", JOB, str(SIZE))
        with ThreadPoolExecutor(CLIENTS) as clients:
            under_way = [clients.submit(follow, serving, side, job.job_id, seed) for seed in range(CLIENTS)]
            found = [one.result() for one in under_way]
        ended = link.wait_ended(job.job_id)
        assert (ended.exit_code, ended.log_bytes, ended.lost_bytes) == (0, SIZE, 0)
        written = Path(side.state_dir, "jobs", job.job_id, "work", "sum").read_text()
        assert found == [Followed(written, DISCONNECTIONS)] * CLIENTS
        serving.wait_for_calls("Stream", CLIENTS * (DISCONNECTIONS + 1))
        assert follow(serving, side, job.job_id, CLIENTS).sha256 == written

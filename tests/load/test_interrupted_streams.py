"""Clients that are cut off again and again while a log is rotated and compressed: each has all of it in the end.

48 MiB; `JOBWORKER_LOAD_MIB=1024` makes it a gibibyte.
"""

from __future__ import annotations

import hashlib
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from support import gateway
from support.certs import dev_pki
from support.root_side import root_side

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

SIZE = int(os.environ.get("JOBWORKER_LOAD_MIB", "48")) << 20
SEGMENT = 1 << 20
CLIENTS, DISCONNECTIONS = 5, 100
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


def follow(address: str, credentials: grpc.ChannelCredentials, job_id: str, seed: int) -> str:
    """Read all of a job's output, leaving and coming back a hundred times; its SHA-256."""
    chance, digest, offset = random.Random(seed), hashlib.sha256(), 0  # noqa: S311 - the same each time
    for left in range(DISCONNECTIONS, -1, -1):
        enough = chance.randrange(2 * SIZE // DISCONNECTIONS) if left else SIZE
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(address, credentials, options) as channel:
            stream = JobWorkerServiceStub(channel).Stream(
                pb.StreamRequest(job_id=job_id, offset=offset, follow=True)
            )
            for message in stream:
                assert not message.gap.length, message.gap
                digest.update(message.chunk.data)
                offset += len(message.chunk.data)
                enough -= len(message.chunk.data)
                if enough < 0:
                    break
            # What is on its way is given up with the connection.
            stream.cancel()
    assert offset == SIZE
    return digest.hexdigest()


def test_whoever_comes_back_has_every_byte_once(tmp_path: Path) -> None:
    with (
        root_side(str(tmp_path), segment_bytes=SEGMENT, compress_logs=True) as side,
        gateway.gateway(tmp_path, gateway.behind(side.settings)) as serving,
    ):
        link = side.link(subscribe=True)
        job = link.start("/usr/bin/python3", "-c", JOB, str(SIZE))
        credentials = gateway.credentials(dev_pki().files("reader"))
        with ThreadPoolExecutor(CLIENTS) as clients:
            sums = [
                clients.submit(follow, serving.address, credentials, job.job_id, seed) for seed in range(CLIENTS)
            ]
            found = {one.result() for one in sums}
        ended = link.wait_ended(job.job_id)
        assert (ended.exit_code, ended.log_bytes, ended.lost_bytes) == (0, SIZE, 0)
        directory = Path(side.state_dir, "jobs", job.job_id)
        assert found == {(directory / "work" / "sum").read_text()}
        side.wait_for(lambda: bool(list(directory.glob("logs/*.gz"))))
        assert follow(serving.address, credentials, job.job_id, CLIENTS) in found

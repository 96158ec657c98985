"""A follower that takes nothing of a flood costs one message, is nobody else's business, and can go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.gateway.segments import OF_ONE_JOB
from jobworker.wire.output_index import DROPPED
from support import gateway
from support.certs import dev_pki
from support.follower import Follower, following
from support.root_side import root_side

pytestmark = pytest.mark.root

SEGMENT = 1 << 20
# Each time the job is told to go on it writes as much as a segment holds: who takes that first misses nothing.
PIECES, WARM = 96, 32
JOB = f"""
import sys
for number, _ in enumerate(sys.stdin):
    sys.stdout.write("%07d\\n" % number * {SEGMENT // 8})
    sys.stdout.flush()
"""
WRITTEN = b"".join(b"%07d\n" % number * (SEGMENT // 8) for number in range(PIECES))
# Much less than what is written meanwhile.
KIB = 6 * 1024


def take_late(follower: Follower) -> list[pb.OutputGap]:
    """All that is left for who has stalled, to the end; what is missing of it."""
    offset, gaps, end = 0, [], None
    follower.open()
    for message in follower.messages():
        assert end is None
        if message.HasField("end"):
            end = message.end
        elif message.HasField("gap"):
            assert message.gap.offset == offset
            gaps.append(message.gap)
            offset += message.gap.length
        else:
            data = message.chunk.data
            assert (message.chunk.offset, data) == (offset, WRITTEN[offset : offset + len(data)])
            offset += len(data)
    assert end == pb.OutputEnd(offset=len(WRITTEN), output_ended=True)
    assert offset == len(WRITTEN)
    return gaps


@pytest.mark.parametrize("keep_log", [4 * SEGMENT, 2 * len(WRITTEN)])
def test_one_that_stalls_costs_little_and_goes_on(tmp_path: Path, keep_log: int) -> None:
    with (
        root_side(str(tmp_path), segment_bytes=SEGMENT, keep_log=keep_log) as side,
        gateway.gateway(tmp_path, gateway.behind(side.settings)) as serving,
        serving.stub(name="reader") as stub,
    ):
        link = side.link(subscribe=True)
        job_id = link.start("/usr/bin/python3", "-c", JOB, stdin_open=True).job_id
        request = pb.StreamRequest(job_id=job_id, follow=True)
        taken, output = bytearray(), stub.Stream(request)

        def write(*pieces: int) -> None:
            """Have the job write these, each of which is taken before the next one is written."""
            for number in pieces:
                link.write_stdin(job_id, b"\n", end=number == PIECES - 1)
                while len(taken) < (number + 1) * SEGMENT:
                    taken.extend(next(output).chunk.data)

        files = dev_pki().files("reader")
        with following(serving.address, files, request, gateway.DEADLINE, window=1) as stalling:
            write(0)
            stalling.wait_stalled()
            write(*range(1, WARM))
            before = serving.memory_kib("RssAnon")
            write(*range(WARM, PIECES))
            grown = serving.memory_kib("RssAnon") - before
            assert next(output).end == pb.OutputEnd(offset=len(WRITTEN), output_ended=True)
            assert taken == WRITTEN
            assert grown < KIB
            ended = link.wait_ended(job_id)
            assert (ended.log_bytes, ended.lost_bytes, ended.exit_code) == (len(WRITTEN), 0, 0)
            gaps = take_late(stalling)
        missing = sum(gap.length for gap in gaps)
        if keep_log > len(WRITTEN):
            assert not missing
        else:
            assert {gap.reason for gap in gaps} == {DROPPED}
            # Segments that the gateway has open for the other one are there for this one as well.
            there = len(WRITTEN) - missing
            assert there <= keep_log + (OF_ONE_JOB + 1) * SEGMENT
        serving.wait_for_calls("Stream", 2)
        assert [call["code"] for call in serving.calls("Stream")] == ["OK", "OK"]

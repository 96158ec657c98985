"""One principal's crowd of calls or streams, and what comes behind it of another's."""

from __future__ import annotations

import contextlib
import selectors
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.jobs import Source
from jobworker.wire.messages import FollowLog, JobReply, LogGrew, LogSegment, OpenLog
from support import certs, gateway, http2
from support.logs import Write, files
from support.scripted_supervisor import Answer, ScriptedSupervisor, job_id, record
from support.stream_flood import Streams

QUERY = pb.QueryRequest(job_id=job_id(1))
# As many as one connection has at a time.
CROWD = 250
STREAMS = 150
# A log of an ended job, of which one source has many small pieces; and one that grows by a line at a time.
OLD = [Write(Source.STDERR if at % 2 else Source.STDOUT, b"%019d\n" % at) for at in range(20_000)]
LINE, LINES = b"%019d\n", 20


def test_a_call_passes_by_the_crowd_of_another(served: gateway.Gateway, printout: list[str]) -> None:
    """By the order of the answers, in ten rounds: behind a queue for all it would be the last one each time."""
    answered: list[int] = []
    with served.stub() as crowd, served.stub(name="reader") as other:
        other.Query(QUERY)
        for _ in range(10):
            arrived, lock = [0], threading.Lock()

            def count(_: object, arrived: list[int] = arrived, lock: threading.Lock = lock) -> None:
                with lock:
                    arrived[0] += 1

            calls = [crowd.Query.future(QUERY) for _ in range(CROWD)]
            for call in calls:
                call.add_done_callback(count)
            other.Query(QUERY)
            answered.append(arrived[0])
            assert all(call.result(gateway.DEADLINE).job.id == job_id(1) for call in calls)
    printout.append(f"of {CROWD} calls there were answered before another's: {sorted(answered)}")
    assert sorted(answered)[len(answered) // 2] < CROWD // 2


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[ScriptedSupervisor]:
    supervisor, size = ScriptedSupervisor(str(tmp_path)), sum(len(write.data) for write in OLD)
    old = record(1, segment_bytes=1 << 30, log_bytes=size, output_ended=True)
    supervisor.records = [old, record(2, segment_bytes=1 << 30)]
    new = [Write(Source.STDOUT, LINE % number) for number in range(LINES)]
    supervisor.handlers[FollowLog] = lambda _: JobReply(supervisor.records[1])
    supervisor.handlers[OpenLog] = lambda request: Answer(
        LogSegment(request.job_id, 0, 0), files(OLD if request.job_id == job_id(1) else new)
    )
    yield supervisor
    supervisor.close()


def test_a_line_passes_by_the_streams_of_another_that_catch_up(
    logs: ScriptedSupervisor, tmp_path: Path, printout: list[str]
) -> None:
    """By the order in which they come: beside them all, one piece of each would come before it."""
    pki, before = certs.dev_pki(), []
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(gateway.gateway(tmp_path))
        assert logs.connected.wait(gateway.DEADLINE)

        def begun(name: str, request: pb.StreamRequest, count: int) -> Streams:
            secure = http2.connection(running.address, pki.files(name), gateway.DEADLINE)
            return Streams(stack.enter_context(secure), request, count)

        other = begun("reader", pb.StreamRequest(job_id=job_id(2), follow=True), 1)
        logs.wait_asked(FollowLog)
        crowd = begun("writer", pb.StreamRequest(job_id=job_id(1), source=pb.OUTPUT_SOURCE_STDERR), STREAMS)
        selector = stack.enter_context(selectors.DefaultSelector())
        for streams in (crowd, other):
            selector.register(streams, selectors.EVENT_READ, streams)

        def take(seconds: float = gateway.DEADLINE) -> bool:
            """Take what has come, the line first: of what a late look finds, the crowd's is behind it."""
            ready = [key.data for key, _ in selector.select(seconds)]
            assert ready or not seconds, "nothing comes any more"
            if ready:
                (other if other in ready else crowd).take()
            return bool(ready)

        for number in range(LINES):
            at = crowd.frames
            while crowd.frames < at + 3 * STREAMS:
                take()
            # What is on its way already has not been passed by.
            while take(0):
                pass
            at = crowd.frames
            logs.tell(LogGrew(job_id(2), (number + 1) * len(LINE % 0), output_ended=False))
            while other.frames <= number:
                take()
            before.append(crowd.frames - at)
    printout.append(f"of {STREAMS} streams there came so many pieces before another's line: {sorted(before)}")
    assert sorted(before)[len(before) // 2] < STREAMS // 2

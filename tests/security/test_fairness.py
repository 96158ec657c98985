"""One principal's crowd of calls, and a call of another's that comes behind it."""

from __future__ import annotations

import threading

from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import gateway
from support.scripted_supervisor import job_id

QUERY = pb.QueryRequest(job_id=job_id(1))
# As many as one connection has at a time.
CROWD = 250


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

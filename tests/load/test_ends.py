"""Jobs that say one byte and end, one after the other: each byte and each end is there, and no cgroup is left."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from bench.agents import async_stubs, start_request
from jobworker.api.v1 import job_worker_service_pb2 as pb
from support.agent import Agent, running_agent
from support.leftovers import all_cgroups

if TYPE_CHECKING:
    from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceAsyncStub

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]

JOBS, CLIENTS = int(os.environ.get("JOBWORKER_JOBS", "1000")), 20


async def follow_all(agent: Agent) -> dict[str, bytes]:
    """So many clients take turns to start a job and to follow it to its end; what each job said."""
    left, heard = iter(range(JOBS)), {}

    async def work(stub: JobWorkerServiceAsyncStub) -> None:
        for _ in left:
            job = (await stub.Start(start_request(("printf", "x")))).job
            messages = [message async for message in stub.Stream(pb.StreamRequest(job_id=job.id, follow=True))]
            heard[job.id] = b"".join(message.chunk.data for message in messages)

    async with async_stubs(agent, CLIENTS) as stubs:
        await asyncio.gather(*map(work, stubs))
    return heard


def test_no_byte_is_lost_and_no_cgroup_is_left() -> None:
    with running_agent() as agent:
        heard = asyncio.run(follow_all(agent))
        assert len(heard) == JOBS
        assert set(heard.values()) == {b"x"}
        assert [path for path in all_cgroups() if os.path.basename(path) in heard] == []

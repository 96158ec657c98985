"""Jobs that say one byte and end, one after the other: each byte and each end is there, and nothing adds up.

A thousand; `make load` has ten thousand.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from bench.agents import async_stubs, start_request
from jobworker.api.v1 import job_worker_service_pb2 as pb
from support.agent import Agent, running_agent
from support.leftovers import all_cgroups, descriptors, threads, zombies_of
from support.waiting import until

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


def held(agent: Agent) -> Counter[str]:
    """Descriptors, threads and zombies of each part."""
    found: Counter[str] = Counter()
    for part in ("keeper", "supervisor", "gateway"):
        pid = agent.pid(part)
        found[f"{part}'s descriptors"] = descriptors(pid)
        found[f"{part}'s threads"] = threads(pid)
        found[f"{part}'s zombies"] = zombies_of(pid)
    return found


def test_no_byte_is_lost_and_nothing_is_left() -> None:
    with running_agent() as agent:
        # What is made when it is first needed, and stays, is there from then on.
        agent.cli("run", "--", "true", check=True)
        before = held(agent)
        heard = asyncio.run(follow_all(agent))
        assert len(heard) == JOBS
        assert set(heard.values()) == {b"x"}
        assert [path for path in all_cgroups() if os.path.basename(path) in heard] == []
        # The keeper hears of an end, and the gateway of a client that goes, a moment after the client does.
        until(lambda: held(agent) - before, Counter())

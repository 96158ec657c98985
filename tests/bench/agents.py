"""Agents to measure, and ways to talk to them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING

import grpc
from grpc import aio

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from support import certs, gateway
from support.agent import DEADLINE, Agent
from support.leftovers import processes_with
from support.waiting import until

if TYPE_CHECKING:
    # The types know it, the module does not.
    from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceAsyncStub

# So many starts are under way at once where the time they take is not what is measured.
_AT_ONCE = 50
# Connections to one address are shared otherwise.
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
QUIET = ("sleep", "1000000")


@contextlib.contextmanager
def scratch(parent: str | None = None) -> Iterator[str]:
    """A directory that jobs, which are other users, can get through; below an agent's they may write there."""
    with tempfile.TemporaryDirectory(prefix="jobworker-bench-", dir=parent) as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        yield directory


@contextlib.contextmanager
def running(ended_jobs: int = 0, more: str = "") -> Iterator[Agent]:
    """A whole agent, as `worker-agent dev` runs it; with so many jobs that have ended before.

    Args:
        ended_jobs: so many.
        more: settings, in YAML.
    """
    with scratch() as directory:
        if ended_jobs:
            # Its own process, since the state directory has one user at a time.
            state = os.path.join(directory, "state")
            command = [sys.executable, "-m", "bench.ended_jobs", state, str(ended_jobs)]
            subprocess.run(command, check=True, timeout=2 * DEADLINE)
        own = f"isolation: {{missing: report, writable: [{directory}], host_for: ['*']}}\n"
        agent = Agent(directory, own + more)
        try:
            yield agent
        finally:
            agent.close()
            # Nobody waits for what only flushes.
            until(lambda: processes_with(directory), [])


def files(agent: Agent) -> certs.Files:
    return certs.DevPki(agent.pki_dir).files("writer")


@contextlib.contextmanager
def stub(agent: Agent) -> Iterator[JobWorkerServiceStub]:
    """A connection that is up."""
    with gateway.channel(agent.addr, files(agent)) as channel:
        grpc.channel_ready_future(channel).result(DEADLINE)
        yield JobWorkerServiceStub(channel)


@contextlib.asynccontextmanager
async def async_stubs(agent: Agent, count: int) -> AsyncIterator[list[JobWorkerServiceAsyncStub]]:
    """So many connections, each its own, all of them up."""
    credentials = gateway.credentials(files(agent))
    async with contextlib.AsyncExitStack() as stack:
        channels = [aio.secure_channel(agent.addr, credentials, _OWN_CONNECTION) for _ in range(count)]
        for channel in channels:
            await stack.enter_async_context(channel)
            await channel.channel_ready()
        yield [JobWorkerServiceStub(channel) for channel in channels]


def start_request(command: Sequence[str], sandbox: str = "") -> pb.StartRequest:
    return pb.StartRequest(command=command[0], args=command[1:], sandbox=sandbox)


def start_jobs(service: JobWorkerServiceStub, command: Sequence[str], count: int) -> list[job_pb2.Job]:
    """So many jobs that run the same command."""
    request, jobs = start_request(command), []
    under_way: deque[grpc.Future[pb.StartResponse]] = deque()
    for _ in range(count):
        under_way.append(service.Start.future(request))
        if len(under_way) == _AT_ONCE:
            jobs.append(under_way.popleft().result(DEADLINE).job)
    return jobs + [future.result(DEADLINE).job for future in under_way]


def query_milliseconds(service: JobWorkerServiceStub, job_id: str) -> float:
    """What one Query takes."""
    begin = time.perf_counter()
    service.Query(pb.QueryRequest(job_id=job_id))
    return (time.perf_counter() - begin) * 1000


def wait_ended(service: JobWorkerServiceStub, job_id: str) -> job_pb2.Job:
    """The job once it has ended, which its process has already or is about to."""
    deadline = time.monotonic() + DEADLINE
    while True:
        job = service.Query(pb.QueryRequest(job_id=job_id)).job
        if job.state == job_pb2.JOB_STATE_ENDED:
            return job
        if time.monotonic() > deadline:
            raise TimeoutError(f"job {job_id} does not end")
        # Nothing that tells of the end leaves the supervisor's speed alone.
        time.sleep(0.005)


def seconds_to_list(service: JobWorkerServiceStub) -> float:
    """How long an agent that has just said it is ready needs until it knows all jobs."""
    begin = time.monotonic()
    while True:
        try:
            service.List(pb.ListRequest(page_size=1))
        except grpc.RpcError:
            if time.monotonic() - begin > DEADLINE:
                raise
        else:
            return time.monotonic() - begin

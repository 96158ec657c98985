"""Many jobs at once, and much output: all of it there, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
import tempfile

import grpc
import pytest

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1 import job_worker_service_pb2_grpc as pb_grpc
from support import processes
from support.agent import Agent, running_agent
from support.leftovers import cgroups, descriptors, processes_of

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

GIB = 1 << 30
SEGMENT = 5 * 1024 * 1024
CLIENTS, JOBS_EACH = 50, 10
# Signed, so that -1 can be told: what the job was to exit with.
CODES = [0, 1, 3, 77, 255]


def sha256_of(agent: Agent, job_id: str, *how: str) -> str:
    """Of the job's standard output, as it is streamed."""
    digest = hashlib.sha256()
    command = agent.command("stream", job_id, "--stdout", *how)
    with processes.running(command, stdout=subprocess.PIPE) as stream:
        assert stream.stdout
        while chunk := stream.stdout.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def test_a_gibibyte_of_random_bytes() -> None:
    """The job keeps count of what it writes, on standard error; the stream is compared with that."""
    script = f"head -c {GIB} /dev/urandom | tee /dev/fd/3 | sha256sum >&2"
    with running_agent() as agent:
        job_id = agent.start_job("--", "bash", "-c", f"{{ {script}; }} 3>&1 >/dev/null")
        while_it_ran, afterwards = (sha256_of(agent, job_id, *how) for how in (("--follow",), ()))
        told = agent.cli("stream", job_id, "--stderr", check=True).stdout.decode().split()[0]
        job = agent.query(job_id)
        assert job["exit_code"] == 0
        assert while_it_ran == afterwards == told
        logs = os.path.dirname(job["log_path"])
        sizes = {name: os.path.getsize(os.path.join(logs, name)) for name in os.listdir(logs) if ".log" in name}
        live_size = sizes.pop(os.path.basename(job["log_path"]))
        assert set(sizes.values()) == {SEGMENT}
        assert len(sizes) == job["log_bytes"] // SEGMENT
        assert len(sizes) * SEGMENT + live_size == job["log_bytes"]


def credentials(agent: Agent) -> grpc.ChannelCredentials:
    def read(name: str) -> bytes:
        with open(os.path.join(agent.pki_dir, name), "rb") as file:
            return file.read()

    return grpc.ssl_channel_credentials(read("ca.pem"), read("writer.key"), read("writer.pem"))


async def client(agent: Agent, number: int) -> list[job_pb2.Job]:
    """One client: starts its jobs, follows the output of each to its end, checks it, and asks how it ended."""
    jobs = []
    # A connection of its own, not one that grpc shares among channels of the same address.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(agent.addr, credentials(agent), options) as channel:
        stub: pb_grpc.JobWorkerServiceAsyncStub = pb_grpc.JobWorkerServiceStub(channel)
        for i in range(JOBS_EACH):
            text = f"job {number}.{i} " + "x" * (i * 1000)
            code = CODES[(number + i) % len(CODES)]
            request = pb.StartRequest(command="sh", args=["-c", f"echo '{text}'; exit {code}"])
            job = (await stub.Start(request)).job
            output = b""
            async for message in stub.Stream(pb.StreamRequest(job_id=job.id, follow=True)):
                output += message.chunk.data
            assert output == f"{text}\n".encode()
            job = (await stub.Query(pb.QueryRequest(job_id=job.id))).job
            assert (job.state, job.end_reason) == (job_pb2.JOB_STATE_ENDED, job_pb2.END_REASON_EXITED)
            assert job.exit_code == code
            jobs.append(job)
    return jobs


async def all_clients(agent: Agent) -> list[job_pb2.Job]:
    return [job for jobs in await asyncio.gather(*(client(agent, n) for n in range(CLIENTS))) for job in jobs]


def parts(agent: Agent) -> dict[str, int]:
    return {part: agent.pid(part) for part in ("keeper", "supervisor", "flusher", "gateway")}


def test_five_hundred_jobs_from_fifty_clients_leave_nothing() -> None:
    with running_agent() as agent:
        agent.cli("run", "--", "true", check=True)
        pids = parts(agent)
        before = {part: descriptors(pids[part]) for part in ("keeper", "supervisor")}
        jobs = asyncio.run(all_clients(agent))
        assert len({job.id for job in jobs}) == CLIENTS * JOBS_EACH
        assert parts(agent) == pids, "no part of the agent was restarted"
        # The keeper hears of the last end a moment after the clients do; what it is asked next comes behind that.
        agent.cli("run", "--", "true", check=True)
        assert {part: descriptors(pids[part]) for part in before} == before
        for job in jobs:
            assert processes_of(job.uid) == []
        for job in jobs[:: len(jobs) // 10]:
            assert cgroups(job.id) == []
        listed = agent.cli("list", "--limit", "1000", "--format", "json", check=True).stdout.splitlines()
        assert len(listed) == CLIENTS * JOBS_EACH + 2
        work = [os.path.join(agent.state_dir, "jobs", job.id) for job in jobs]
        # The flusher comes to each in its time, and its file is written beside first.
        flushed = {"flushed.json", "flushed.json.new"}
        assert all(set(os.listdir(path)) - flushed == {"job.json", "logs", "work"} for path in work)
    users = {job.uid for job in jobs}
    with os.scandir(tempfile.gettempdir()) as entries:
        assert [entry.name for entry in entries if owner(entry) in users] == []


def owner(entry: os.DirEntry[str]) -> int | None:
    """Whose it is; None for what another test has removed meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return entry.stat(follow_symlinks=False).st_uid
    return None

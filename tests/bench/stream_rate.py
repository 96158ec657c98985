"""Output streams over mutual TLS, beside a bare server that streams the same bytes from memory."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bench import agents, bare_server
from bench.processes import cpu_seconds, parts, wait_for_end
from bench.report import Outcome, Table, above
from bench.scale import MIB, Scale
from bench.stats import median
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.gateway.output import CHUNK_BYTES
from support import certs
from support.agent import DEADLINE

_FOLLOWERS = (1, 4, 16)
_REACH = 0.9
_STREAM = "/jobworker.api.v1.JobWorkerService/Stream"


@dataclass(slots=True)
class Follower:
    """A client process with a connection that is up."""

    process: subprocess.Popen[str]

    def send(self, request: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{request.hex()}\n")
        self.process.stdin.flush()

    def receive(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()


@dataclass(frozen=True, slots=True)
class Served:
    """What one round took."""

    mib_per_second: float
    cpu_seconds_per_gib: float


@dataclass(frozen=True, slots=True)
class Contender:
    """A server, its followers, and the request for a number of bytes."""

    name: str
    pid: int
    followers: list[Follower]
    request: Callable[[int], bytes]
    rounds: dict[int, list[Served]] = field(default_factory=lambda: {count: [] for count in _FOLLOWERS})


def measure(scale: Scale) -> Outcome:
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(agents.running())
        service = stack.enter_context(agents.stub(agent))
        jobs = {size: _job_with_output(service, size) for size in _sizes(scale)}
        pki = certs.DevPki(agent.pki_dir)
        files = pki.files("writer")
        bare_pid, addr = stack.enter_context(_bare(pki))
        contenders = (
            Contender(
                "jobworker",
                parts(agent).gateway,
                stack.enter_context(_followers(agent.addr, _STREAM, files)),
                lambda size: pb.StreamRequest(job_id=jobs[size], follow=True).SerializeToString(),
            ),
            Contender(
                "bare grpc.aio",
                bare_pid,
                stack.enter_context(_followers(addr, f"/{bare_server.SERVICE}/{bare_server.METHOD}", files)),
                lambda size: b"%d" % (size // CHUNK_BYTES),
            ),
        )
        for _ in range(scale.rounds):
            for count in _FOLLOWERS:
                for contender in contenders:
                    contender.rounds[count].append(_round(contender, count, scale.stream_bytes // count))
    return _outcome(*contenders)


def _sizes(scale: Scale) -> set[int]:
    return {scale.stream_bytes // count for count in _FOLLOWERS}


def _job_with_output(service: JobWorkerServiceStub, size: int) -> str:
    job = service.Start(agents.start_request(("head", "-c", str(size), "/dev/zero"))).job
    wait_for_end(job.pid)
    return agents.wait_ended(service, job.id).id


@contextlib.contextmanager
def _child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A module of this folder in a process that ends when its standard input does."""
    command = [sys.executable, "-m", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.communicate(timeout=DEADLINE)


@contextlib.contextmanager
def _bare(pki: certs.DevPki) -> Iterator[tuple[int, str]]:
    """The bare server's pid and address."""
    files = pki.files("server")
    with _child("bench.bare_server", files.ca, files.cert, files.key) as process:
        assert process.stdout
        yield process.pid, f"127.0.0.1:{process.stdout.readline().strip()}"


@contextlib.contextmanager
def _followers(addr: str, method: str, files: certs.Files) -> Iterator[list[Follower]]:
    arguments = ("bench.stream_client", addr, method, files.ca, files.cert, files.key)
    with contextlib.ExitStack() as stack:
        followers = [Follower(stack.enter_context(_child(*arguments))) for _ in range(max(_FOLLOWERS))]
        for follower in followers:
            follower.receive()
        yield followers


def _round(contender: Contender, count: int, size: int) -> Served:
    """So many followers take so many bytes each."""
    followers, request = contender.followers[:count], contender.request(size)
    cpu, begin = cpu_seconds(contender.pid), time.perf_counter()
    for follower in followers:
        follower.send(request)
    received = [int(follower.receive()) for follower in followers]
    seconds, cpu = time.perf_counter() - begin, cpu_seconds(contender.pid) - cpu
    if min(received) < size:
        raise RuntimeError(f"a follower of {contender.name} got {min(received)} of {size} bytes")
    mib = size * count / MIB
    return Served(mib / seconds, cpu / mib * 1024)


def _outcome(own: Contender, bare: Contender) -> Outcome:
    rows, ratios = [], {}
    for count in _FOLLOWERS:
        speeds = [median([served.mib_per_second for served in c.rounds[count]]) for c in (own, bare)]
        costs = [median([served.cpu_seconds_per_gib for served in c.rounds[count]]) for c in (own, bare)]
        ratios[count] = speeds[0] / speeds[1]
        numbers = (f"{speeds[0]:.0f}", f"{speeds[1]:.0f}", f"{ratios[count]:.2f}")
        rows.append((f"{count} followers", *numbers, *(f"{cost:.2f}" for cost in costs)))
    head = ("", "jobworker MiB/s", "bare MiB/s", "ratio", "jobworker CPU s/GiB", "bare CPU s/GiB")
    note = (
        f"Messages of {CHUNK_BYTES // 1024} KiB, every follower a process of its own, the same number of bytes in "
        "all for any number of followers, interleaved. The job has ended; its log is in the page cache. The bare "
        "server sends one message from memory again and again. CPU is the server's."
    )
    most = max(_FOLLOWERS)
    figure = above(f"stream / bare grpc.aio, {most} followers", ratios[most], _REACH)
    return Outcome((Table("Output streams over mutual TLS", head, tuple(rows), (note,)),), (figure,))

"""Output streams over mutual TLS, beside a bare server that streams the same bytes from memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bench import agents, bare_server
from bench.followers import Follower, Served, child, followers, take
from bench.processes import parts
from bench.report import Outcome, Table, above
from bench.scale import Scale
from bench.stats import median
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.gateway.output import CHUNK_BYTES
from support import certs
from support.waiting import wait_for_end

_FOLLOWERS = (1, 4, 16)
# One round says little: of the same server they are a quarter apart.
_REPEATED = 3
_REACH = 0.9
STREAM = "/jobworker.api.v1.JobWorkerService/Stream"


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
        bare_pid, addr = stack.enter_context(bare(pki))
        contenders = (
            Contender(
                "jobworker",
                parts(agent).gateway,
                stack.enter_context(followers(max(_FOLLOWERS), agent.addr, STREAM, files)),
                lambda size: pb.StreamRequest(job_id=jobs[size], follow=True).SerializeToString(),
            ),
            Contender(
                "bare grpc.aio",
                bare_pid,
                stack.enter_context(
                    followers(max(_FOLLOWERS), addr, f"/{bare_server.SERVICE}/{bare_server.METHOD}", files)
                ),
                lambda size: b"%d" % (size // CHUNK_BYTES),
            ),
        )
        for number in range(_REPEATED * scale.rounds):
            for count in _FOLLOWERS:
                # Who comes second finds another CPU's cache and clock than who comes first.
                for contender in contenders if number % 2 else contenders[::-1]:
                    contender.rounds[count].append(_round(contender, count, scale.stream_bytes // count))
    return _outcome(*contenders)


def _sizes(scale: Scale) -> set[int]:
    return {scale.stream_bytes // count for count in _FOLLOWERS}


def _job_with_output(service: JobWorkerServiceStub, size: int) -> str:
    job = service.Start(agents.start_request(("head", "-c", str(size), "/dev/zero"))).job
    wait_for_end(job.pid)
    return agents.wait_ended(service, job.id).id


@contextlib.contextmanager
def bare(pki: certs.DevPki) -> Iterator[tuple[int, str]]:
    """The bare server's pid and address."""
    files = pki.files("server")
    with child("bench.bare_server", files.ca, files.cert, files.key) as process:
        assert process.stdout
        yield process.pid, f"127.0.0.1:{process.stdout.readline().strip()}"


def _round(contender: Contender, count: int, size: int) -> Served:
    """So many followers take so many bytes each."""
    return take(contender.pid, contender.followers[:count], contender.request(size), size)


def _outcome(own: Contender, bare: Contender) -> Outcome:
    rows, ratios = [], {}
    for count in _FOLLOWERS:
        speeds = [median([served.mib_per_second for served in c.rounds[count]]) for c in (own, bare)]
        costs = [median([served.cpu_seconds_per_gib for served in c.rounds[count]]) for c in (own, bare)]
        pairs = zip(own.rounds[count], bare.rounds[count], strict=True)
        ratios[count] = median([ours.mib_per_second / theirs.mib_per_second for ours, theirs in pairs])
        numbers = (f"{speeds[0]:.0f}", f"{speeds[1]:.0f}", f"{ratios[count]:.2f}")
        rows.append((f"{count} followers", *numbers, *(f"{cost:.2f}" for cost in costs)))
    head = ("", "jobworker MiB/s", "bare MiB/s", "ratio", "jobworker CPU s/GiB", "bare CPU s/GiB")
    note = (
        f"Messages of {CHUNK_BYTES // 1024} KiB, every follower a process of its own, the same number of bytes in "
        "all for any number of followers, interleaved. The job has ended; its log is in the page cache. The bare "
        "server sends one message from memory again and again. The ratio is the median of all rounds. CPU is the "
        "server's."
    )
    figures = [above(f"stream / bare grpc.aio, {count} followers", ratios[count], _REACH) for count in _FOLLOWERS]
    return Outcome((Table("Output streams over mutual TLS", head, tuple(rows), (note,)),), tuple(figures))

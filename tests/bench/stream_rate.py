"""Output streams over mutual TLS, beside a bare server that streams from memory: as many bytes, or one message."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
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
        bare_pid, bare_addr = stack.enter_context(bare(pki, held=scale.stream_bytes // CHUNK_BYTES))

        def contender(name: str, pid: int, addr: str, method: str, request: Callable[[int], bytes]) -> Contender:
            return Contender(name, pid, stack.enter_context(followers(max(_FOLLOWERS), addr, method, files)), request)

        def logged(size: int) -> bytes:
            return pb.StreamRequest(job_id=jobs[size], follow=True).SerializeToString()

        def counted(size: int) -> bytes:
            return b"%d" % (size // CHUNK_BYTES)

        contenders = (
            contender("jobworker", parts(agent).gateway, agent.addr, STREAM, logged),
            contender("bare, all held", bare_pid, bare_addr, bare_server.method(bare_server.HELD), counted),
            contender("bare, one message", bare_pid, bare_addr, bare_server.method(bare_server.SAME), counted),
        )
        for number in range(_REPEATED * scale.rounds):
            for count in _FOLLOWERS:
                # Who comes first finds another CPU's cache and clock than who comes behind.
                first = number % len(contenders)
                for each in contenders[first:] + contenders[:first]:
                    each.rounds[count].append(_round(each, count, scale.stream_bytes // count))
    return _outcome(*contenders)


def _sizes(scale: Scale) -> set[int]:
    return {scale.stream_bytes // count for count in _FOLLOWERS}


def _job_with_output(service: JobWorkerServiceStub, size: int) -> str:
    job = service.Start(agents.start_request(("head", "-c", str(size), "/dev/zero"))).job
    wait_for_end(job.pid)
    return agents.wait_ended(service, job.id).id


@contextlib.contextmanager
def bare(pki: certs.DevPki, *, held: int = 1) -> Iterator[tuple[int, str]]:
    """The bare server's pid and address; it holds so many messages."""
    files = pki.files("server")
    with child("bench.bare_server", str(held), files.ca, files.cert, files.key) as process:
        assert process.stdout
        yield process.pid, f"127.0.0.1:{process.stdout.readline().strip()}"


def _round(contender: Contender, count: int, size: int) -> Served:
    """So many followers take so many bytes each."""
    return take(contender.pid, contender.followers[:count], contender.request(size), size)


def _outcome(own: Contender, *bare: Contender) -> Outcome:
    rows = [_row(count, own, bare) for count in _FOLLOWERS]
    head = (
        "",
        *(f"{title} {unit}" for unit in ("MiB/s", "CPU s/GiB") for title in ("jobworker", *(b.name for b in bare))),
        *(f"jobworker / {b.name}" for b in bare),
    )
    note = (
        f"Messages of {CHUNK_BYTES // 1024} KiB, every follower a process of its own, the same number of bytes in "
        "all for any number of followers, interleaved. The job has ended; its log is in the page cache. The bare "
        "server is grpc.aio with the messages in memory, made beforehand: it holds them all, one behind the other, or "
        "sends one again and again, which stays in the CPU's cache. Ratios are the median of all rounds. CPU is the "
        "server's."
    )
    figures = [
        above(f"stream / {b.name}, {count} followers", _ratio(own, b, count), _REACH)
        for b in bare
        for count in _FOLLOWERS
    ]
    return Outcome((Table("Output streams over mutual TLS", head, tuple(rows), (note,)),), tuple(figures))


def _row(count: int, own: Contender, bare: Sequence[Contender]) -> tuple[str, ...]:
    rounds = [contender.rounds[count] for contender in (own, *bare)]
    return (
        f"{count} followers",
        *(f"{median([served.mib_per_second for served in each]):.0f}" for each in rounds),
        *(f"{median([served.cpu_seconds_per_gib for served in each]):.2f}" for each in rounds),
        *(f"{_ratio(own, each, count):.2f}" for each in bare),
    )


def _ratio(own: Contender, bare: Contender, count: int) -> float:
    pairs = zip(own.rounds[count], bare.rounds[count], strict=True)
    return median([ours.mib_per_second / theirs.mib_per_second for ours, theirs in pairs])

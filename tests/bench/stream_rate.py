"""Output streams over mutual TLS, beside a bare server that streams as many bytes from memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bench import agents, bare_server
from bench.followers import Follower, Served, child, followers, take
from bench.processes import parts
from bench.report import Outcome, Table, above
from bench.scale import KIB, Scale
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


Request = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Contender:
    """A server, its followers, and the request for a number of bytes."""

    name: str
    pid: int
    followers: list[Follower]
    request: Request
    rounds: dict[int, list[Served]] = field(default_factory=lambda: {count: [] for count in _FOLLOWERS})


def measure(scale: Scale) -> Outcome:
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(agents.running())
        service = stack.enter_context(agents.stub(agent))
        jobs = {size: _job_with_output(service, size) for size in _sizes(scale)}
        pki = certs.DevPki(agent.pki_dir)
        files = pki.files("writer")
        bare_pid, bare_addr = stack.enter_context(bare(pki, held=scale.stream_bytes))

        def contender(name: str, pid: int, addr: str, method: str, request: Request) -> Contender:
            by = stack.enter_context(followers(max(_FOLLOWERS), addr, method, files))
            return Contender(name, pid, by, request)

        def logged(size: int) -> bytes:
            return pb.StreamRequest(job_id=jobs[size], follow=True).SerializeToString()

        def bare_one(message_bytes: int) -> Contender:
            name, method = f"bare, {message_bytes // KIB} KiB", bare_server.method(bare_server.STREAM)
            return contender(name, bare_pid, bare_addr, method, lambda size: b"%d %d" % (message_bytes, size))

        contenders = (
            contender("jobworker", parts(agent).gateway, agent.addr, STREAM, logged),
            *map(bare_one, bare_server.SIZES),
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
def bare(pki: certs.DevPki, *, held: int = 0) -> Iterator[tuple[int, str]]:
    """The bare server's pid and address; it holds so many bytes."""
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
        *(f"{each.name} {unit}" for unit in ("MiB/s", "CPU s/GiB") for each in (own, *bare)),
        *(f"{own.name} / {each.name}" for each in bare),
    )
    note = (
        "Every follower is a process of its own; the same number of bytes in all for any number of followers, "
        f"interleaved. The agent's messages are of {CHUNK_BYTES // KIB} KiB. The job has ended; its log is in the "
        "page cache. The bare server is grpc.aio that has as many bytes in memory, as messages that were made "
        "beforehand: as large as the agent's, or smaller. Ratios are the median of all rounds. CPU is the "
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

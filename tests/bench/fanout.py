"""One job's lines to many followers: how long until each has them, and what stalled ones change."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from bench import agents, bare_server
from bench.fanout_client import STREAMS_EACH
from bench.followers import child
from bench.processes import cpu_seconds, memory, parts
from bench.report import Outcome, Table, below
from bench.scale import Scale
from bench.stats import median, percentile
from bench.stream_rate import STREAM, bare
from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import certs

_REACH_MS = 50
_TICKS = bare_server.method(bare_server.TICKS)


@dataclass(frozen=True, slots=True)
class Served:
    """A server that tells the time to its followers.

    Attributes:
        request: what a follower asks for.
    """

    name: str
    pid: int
    addr: str
    method: str
    request: bytes


@dataclass(frozen=True, slots=True)
class Reached:
    """What came of one round.

    Attributes:
        latencies: from the write to each follower, in milliseconds.
        cpu: of the server, in percent of one CPU.
        resident_mib: of the server, in the end.
    """

    latencies: list[float]
    cpu: float
    resident_mib: float


def measure(scale: Scale) -> Outcome:
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(agents.running())
        service = stack.enter_context(agents.stub(agent))
        source = Path(__file__).with_name("ticks.py").read_text()
        job = service.Start(agents.start_request(("python3", "-c", source, str(bare_server.PERIOD)))).job
        pki = certs.DevPki(agent.pki_dir)
        bare_pid, addr = stack.enter_context(bare(pki))
        request = pb.StreamRequest(job_id=job.id, follow=True).SerializeToString()
        servers = (
            Served("jobworker", parts(agent).gateway, agent.addr, STREAM, request),
            Served("bare grpc.aio", bare_pid, addr, _TICKS, b""),
        )
        rows, figures = [], []
        for server in servers:
            for stalled in (0, scale.stalled):
                reached = _round(server, pki.files("writer"), scale, stalled)
                rows.append(_row(f"{server.name}, {stalled} stalled", reached))
                if server is servers[0]:
                    what = f"line to each of {scale.fanout} followers, {stalled} stalled, p99"
                    figures.append(below(what, percentile(reached.latencies, 99), _REACH_MS, " ms"))
    head = ("", "p50 ms", "p99 ms", "longest ms", "server CPU %", "server MiB")
    note = (
        f"A job writes a line of some 500 bytes each {bare_server.PERIOD:g} s; {scale.fanout} followers, on "
        f"connections of {STREAMS_EACH} streams, take it over mutual TLS on the same machine, by a client that "
        "reads frames and no more. Latencies are from before the job's write until the follower has the message. "
        "Stalled followers have asked for the same and have a window of one byte: no more has come to them. The "
        "bare server makes the line itself, in memory."
    )
    return Outcome((Table("One job, many followers", head, tuple(rows), (note,)),), tuple(figures))


@contextlib.contextmanager
def client(
    addr: str, method: str, files: certs.Files, requests: Sequence[bytes], *, count: int, stalled: int
) -> Iterator[Popen[str]]:
    """A process of followers, each of which has had a line, or has stalled."""
    asked = (addr, method, files.ca, files.cert, files.key, str(count), str(stalled))
    with child("bench.fanout_client", *asked, *(request.hex() for request in requests)) as process:
        _ask(process)
        yield process


def _round(server: Served, files: certs.Files, scale: Scale, stalled: int) -> Reached:
    asked = (server.addr, server.method, files, (server.request,))
    with client(*asked, count=scale.fanout, stalled=stalled) as followers:
        _tell(followers)
        _ask(followers)
        cpu, begin = cpu_seconds(server.pid), time.monotonic()
        time.sleep(scale.fanout_seconds)
        _tell(followers)
        latencies = [int(number) / 1000 for number in _ask(followers).split()]
        share = (cpu_seconds(server.pid) - cpu) / (time.monotonic() - begin) * 100
        return Reached(latencies, share, memory(server.pid).rss / 1024)


def _tell(client: Popen[str]) -> None:
    assert client.stdin
    client.stdin.write("\n")
    client.stdin.flush()


def _ask(client: Popen[str]) -> str:
    """Its next line.

    Raises:
        RuntimeError: it has ended; why, is on standard error.
    """
    assert client.stdout
    if not (line := client.stdout.readline()):
        raise RuntimeError("the followers have ended")
    return line


def _row(name: str, reached: Reached) -> tuple[str, ...]:
    found = reached.latencies
    shown = (median(found), percentile(found, 99), max(found), reached.cpu)
    return (name, *(f"{value:.1f}" for value in shown), f"{reached.resident_mib:.0f}")

"""What others notice of a flood: Queries of one principal, beside one that floods the gateway."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from bench import agents, processes
from bench.report import Outcome, Table, below
from bench.scale import Scale
from bench.stats import median, p99
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from support import certs, gateway
from support.agent import Agent
from support.call_flood import call_flood
from support.flood import Flood, flood
from support.stream_flood import stream_flood

# On each of so many connections; one has no more than 256 at a time.
_CALLS, _CONNECTIONS = 225, 4
# Where a Query takes seconds, fewer are enough to say so.
_SECONDS = 30.0
_SILENT, _HANDSHAKES = 2_000, 4
_REACH_MS = 250
_MIB = 1024
# That catch up on a log, on each of so many connections.
_STREAMS, _STREAM_CONNECTIONS = 50, 4
_JOB = ("sh", "-c", f"head -c {256 * 1024 * _MIB} /dev/zero; exec sleep 1000000")

Begin = Callable[[str, certs.Files, str], contextlib.AbstractContextManager[Flood | None]]
_FLOODS: dict[str, Begin] = {
    "nothing": lambda *_: contextlib.nullcontext(),
    f"{_SILENT} silent connections, a loop of handshakes": lambda address, files, _: flood(
        address, files, connections=_HANDSHAKES, silent=_SILENT
    ),
    f"{_CONNECTIONS * _CALLS} calls at a time": lambda address, files, job_id: call_flood(
        address, files, job_id, calls=_CALLS, connections=_CONNECTIONS
    ),
    f"{_STREAM_CONNECTIONS * _STREAMS} streams that catch up": lambda address, files, job_id: stream_flood(
        address, files, job_id, streams=_STREAMS, connections=_STREAM_CONNECTIONS
    ),
}


def measure(scale: Scale) -> Outcome:
    """In an agent of its own for each flood, since memory is told by its peak."""
    rows, figures = [], []
    for name, begin in _FLOODS.items():
        with agents.running() as agent, agents.stub(agent) as service:
            (job,) = agents.start_jobs(service, _JOB, 1)
            row, worst = _beside(agent, begin, job.id, scale)
        rows.append((name, *row))
        figures.append(below(f"Query p99 beside {name}", worst, _REACH_MS, " ms"))
    note = (
        f"At most {scale.calls} Queries of another principal, one at a time, on a connection it had before, for a "
        "job that runs and has written 256 MiB. The flood is a process on the same machine, and takes CPU of it "
        "for itself."
    )
    head = ("beside", "p50 ms", "p99 ms", "most ms", "answered to the flood", "gateway at most, MiB")
    return Outcome((Table("Floods", head, tuple(rows), (note,)),), tuple(figures))


def _beside(agent: Agent, begin: Begin, job_id: str, scale: Scale) -> tuple[tuple[str, ...], float]:
    pki, gateway_pid = certs.DevPki(agent.pki_dir), processes.parts(agent).gateway
    with gateway.channel(agent.addr, pki.files("reader")) as channel:
        service = JobWorkerServiceStub(channel)
        service.Query(pb.QueryRequest(job_id=job_id))
        begun = time.monotonic()
        with begin(agent.addr, pki.files("writer"), job_id) as flooding:
            took: list[float] = []
            while len(took) < scale.calls and time.monotonic() - begun < _SECONDS:
                took.append(agents.query_milliseconds(service, job_id))
        seconds = time.monotonic() - begun
    told = f"{sum(flooding.counts.values()) / seconds:.0f}/s" if flooding else ""
    peak = f"{processes.peak_kib(gateway_pid) / _MIB:.0f}"
    worst = p99(took)
    return (f"{median(took):.1f}", f"{worst:.1f}", f"{max(took):.1f}", told, peak), worst

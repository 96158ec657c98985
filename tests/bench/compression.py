"""What it costs to compress logs: beside a flood, and in all; and what it saves."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from bench import agents, processes
from bench.report import Outcome, Table
from bench.scale import MIB, Scale
from bench.stats import median
from jobworker.api.v1 import job_pb2
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from support.agent import DEADLINE, Agent
from support.waiting import wait_for_end

_AWK = """
function r() { return rand() * 1e6 }
BEGIN {
    srand(1)
    for (i = 0; i < 9000; i++)
        printf "2026-11-24T06:07:%03dZ worker-%d INFO GET /items/%d in 0.%d s\\n", i % 999, i % 40, r(), r()
}"""
# Written over and over, from memory: what the agent does with it is measured, not who makes it.
_SCRIPT = """awk "$2" >text; for i in 1 2 3 4 5 6; do cat text text >more; mv more text; done
echo begin >&2; while cat text; do :; done | head -c "$1" """


@dataclass(frozen=True, slots=True)
class _Flood:
    """One flood: MiB a second until its end, CPU seconds of the compressor, and bytes on the disk, of its MiB."""

    rate: float
    cpu_seconds: float
    mib: float
    stored: float


def measure(scale: Scale) -> Outcome:
    floods: dict[bool, list[_Flood]] = {False: [], True: []}
    with agents.running() as plain, agents.running(more="jobs: {compress_logs: true}\n") as packing:
        for _ in range(scale.rounds):
            for agent in (plain, packing):
                with agents.stub(agent) as service:
                    flood = _flood(agent, service, scale.pump_bytes, compressed=agent is packing)
                floods[agent is packing].append(flood)
    rows = (
        _row("plain", floods[False]),
        _row("compressed", floods[True]),
    )
    head = ("", "flood MiB/s", "compressor: CPU s for 1 GiB", "on the disk, of what was written")
    note = (
        f"A job writes {scale.pump_bytes // MIB} MiB of a log with times, numbers and much that repeats itself. "
        "The compressor goes on behind the flood's end."
    )
    return Outcome((Table("Compressed logs", head, rows, (note,)),))


def _row(name: str, floods: list[_Flood]) -> tuple[str, ...]:
    return (
        name,
        f"{median([flood.rate for flood in floods]):.0f}",
        f"{median([flood.cpu_seconds / flood.mib * 1024 for flood in floods]):.1f}",
        f"{median([flood.stored for flood in floods]):.0%}",
    )


def _flood(agent: Agent, service: JobWorkerServiceStub, size: int, *, compressed: bool) -> _Flood:
    command = ("sh", "-c", _SCRIPT, "sh", str(size), _AWK)
    started = service.Start(agents.start_request(command)).job
    before = _compressor_seconds(agent)
    begun = _begun(agent, started)
    wait_for_end(started.pid)
    ended = agents.wait_ended(service, started.id)
    logs = Path(agent.state_dir, "jobs", ended.id, "logs")
    if compressed:
        _wait_compressed(logs)
    stored = sum(path.stat().st_size for path in logs.iterdir())
    seconds = ended.ended_at.ToNanoseconds() / 1e9 - begun
    cpu_seconds = _compressor_seconds(agent) - before
    # Not the job's directory itself, in which the flusher may be making a file.
    shutil.rmtree(logs)
    return _Flood(size / MIB / seconds, cpu_seconds, size / MIB, stored / size)


def _begun(agent: Agent, job: job_pb2.Job) -> float:
    """When the job had made what it writes: Unix time, as the index has it for its first byte."""
    log = Path(agent.state_dir, "jobs", job.id, "logs", f"job_{job.id}.log")
    deadline = time.monotonic() + DEADLINE
    while not (log.exists() and log.stat().st_size) and not log.with_name(f"{log.name}.0").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"job {job.id} writes nothing")
        time.sleep(0.001)
    return time.time()


def _compressor_seconds(agent: Agent) -> float:
    try:
        return processes.cpu_seconds(processes.compressor(agent))
    except LookupError:
        return 0.0


def _wait_compressed(logs: Path) -> None:
    before, deadline = -1, 0.0
    while left := sum(path.name.rpartition(".")[2].isdecimal() for path in logs.glob("*.log.*")):
        if left != before:
            before, deadline = left, time.monotonic() + DEADLINE
        if time.monotonic() > deadline:
            raise TimeoutError(f"{left} segments in {logs} are not compressed")
        time.sleep(0.02)

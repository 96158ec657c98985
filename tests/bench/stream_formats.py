"""What TEXT, JSON and compression cost beside output as bytes, over mutual TLS."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench import agents
from bench.followers import Served, followers, take
from bench.processes import parts
from bench.report import Outcome, Table
from bench.scale import MIB, Scale
from bench.stats import median
from bench.stream_rate import STREAM
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from support.waiting import wait_for_end

_FOLLOWERS = (1, 4)
# Lines of 70 bytes, as logs have them; and what gzip can do nothing about.
_LINES = "yes '2026-01-31T08:00:00Z INFO request handled path=/api/v1/jobs status=200' | head -c {}"
_RANDOM = "head -c {} /dev/urandom"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to take the output of one of the jobs."""

    name: str
    script: str
    format: pb.OutputFormat.ValueType
    compress: bool = False
    rounds: dict[int, list[Served]] = field(default_factory=lambda: {count: [] for count in _FOLLOWERS})


def measure(scale: Scale) -> Outcome:
    size = scale.stream_bytes // 8
    ways = (
        Way("lines, BINARY", _LINES, pb.OUTPUT_FORMAT_BINARY),
        Way("lines, TEXT", _LINES, pb.OUTPUT_FORMAT_TEXT),
        Way("lines, JSON", _LINES, pb.OUTPUT_FORMAT_JSON),
        Way("lines, BINARY, gzip", _LINES, pb.OUTPUT_FORMAT_BINARY, compress=True),
        Way("lines, JSON, gzip", _LINES, pb.OUTPUT_FORMAT_JSON, compress=True),
        Way("random bytes, BINARY", _RANDOM, pb.OUTPUT_FORMAT_BINARY),
        Way("random bytes, TEXT", _RANDOM, pb.OUTPUT_FORMAT_TEXT),
        Way("random bytes, BINARY, gzip", _RANDOM, pb.OUTPUT_FORMAT_BINARY, compress=True),
    )
    with agents.running() as agent, agents.stub(agent) as service:
        jobs = {script: _ended_job(service, script.format(size)) for script in (_LINES, _RANDOM)}
        with followers(max(_FOLLOWERS), agent.addr, STREAM, agents.files(agent)) as all_followers:
            for _ in range(scale.rounds):
                for count in _FOLLOWERS:
                    for way in ways:
                        request = pb.StreamRequest(job_id=jobs[way.script], format=way.format)
                        served = take(
                            parts(agent).gateway,
                            all_followers[:count],
                            request.SerializeToString(),
                            size,
                            compress=way.compress,
                        )
                        way.rounds[count].append(served)
    return _outcome(ways, size)


def _ended_job(service: JobWorkerServiceStub, script: str) -> str:
    job = service.Start(agents.start_request(("sh", "-c", script))).job
    wait_for_end(job.pid)
    return agents.wait_ended(service, job.id).id


def _outcome(ways: tuple[Way, ...], size: int) -> Outcome:
    rows = []
    for way in ways:
        cells = []
        for served in way.rounds.values():
            cells.append(f"{median([one.mib_per_second for one in served]):.0f}")
            cells.append(f"{median([one.cpu_seconds_per_gib for one in served]):.2f}")
        rows.append((way.name, *cells))
    units = ("MiB/s", "CPU s/GiB")
    head = ("", *(f"{count} followers {unit}" for count in _FOLLOWERS for unit in units))
    note = (
        f"Of a job that has ended each follower takes {size // MIB} MiB. A MiB is of the job's own bytes, however "
        "many TEXT, JSON or gzip make of them. CPU is the gateway's."
    )
    return Outcome((Table("Output in other forms", head, tuple(rows), (note,)),))

"""A job that makes all processes it may, and tries for more: what it costs others, and how soon it is stopped."""

from __future__ import annotations

import time

from bench import agents
from bench.report import Outcome, Table, below
from bench.scale import Scale
from bench.stats import median, p99
from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from support.leftovers import cgroups, processes_of
from support.waiting import until

# Each of them goes on trying.
_BOMB = ("python3", "-c", "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass")
# What a job may have that asks for no limit of its own.
_PROCESSES = 1024
_REACH_SECONDS = 2.0
_REACH_MS = 250


def measure(scale: Scale) -> Outcome:
    alone: list[float] = []
    beside: list[float] = []
    stops: list[float] = []
    calls = range(scale.calls // scale.rounds)
    with agents.running() as agent, agents.stub(agent) as service:
        (quiet,) = agents.start_jobs(service, agents.QUIET, 1)
        for _ in range(scale.rounds):
            alone += (agents.query_milliseconds(service, quiet.id) for _ in calls)
            bomb = _exploded(service)
            beside += (agents.query_milliseconds(service, quiet.id) for _ in calls)
            begin = time.monotonic()
            stopping = service.Stop.future(pb.StopRequest(job_id=bomb.id, force=True))
            while not stopping.done():
                beside.append(agents.query_milliseconds(service, quiet.id))
            stops.append(time.monotonic() - begin)
            if (ended := stopping.result().job).state != job_pb2.JOB_STATE_ENDED:
                raise RuntimeError(f"the bomb was stopped, and is {job_pb2.JobState.Name(ended.state)}")
            if left := [*processes_of(bomb.uid), *cgroups(bomb.id)]:
                raise RuntimeError(f"the bomb has ended, and there is still {left}")
    return _outcome(alone, beside, stops)


def _exploded(service: JobWorkerServiceStub) -> job_pb2.Job:
    """A bomb that has as many processes as it may."""
    (bomb,) = agents.start_jobs(service, _BOMB, 1)
    until(lambda: len(processes_of(bomb.uid)), _PROCESSES)
    return bomb


def _outcome(alone: list[float], beside: list[float], stops: list[float]) -> Outcome:
    rows = (
        ("Query, beside nothing", f"{median(alone):.1f}", f"{p99(alone):.1f}", f"{max(alone):.1f}"),
        ("Query, beside the bomb", f"{median(beside):.1f}", f"{p99(beside):.1f}", f"{max(beside):.1f}"),
        ("Stop of the bomb", f"{1000 * median(stops):.0f}", "", f"{1000 * max(stops):.0f}"),
    )
    note = (
        f"{len(stops)} bombs of {_PROCESSES} processes each, with no limit of CPU, which all try to fork all the "
        f"time; {len(alone)} Queries of a job that sleeps, one at a time, beside none of them, and {len(beside)} "
        "while they run and are stopped. Stop kills at once, and answers when no process is left."
    )
    figures = (
        below("a fork bomb's stop, longest", max(stops), _REACH_SECONDS, " s"),
        below("Query p99 beside a fork bomb", p99(beside), _REACH_MS, " ms"),
    )
    return Outcome((Table("A fork bomb", ("", "p50 ms", "p99 ms", "most ms"), rows, (note,)),), figures)

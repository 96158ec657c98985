"""A job that floods its output: through the agent into the log, and straight into a file of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from bench import agents
from bench.processes import parts
from bench.report import Outcome, Table, above
from bench.scale import MIB, Scale
from bench.stats import median
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from support.agent import Agent
from support.waiting import wait_for_end

_REACH = 0.55


@dataclass(frozen=True, slots=True)
class Case:
    """A writer, and where it runs: on the supervisor's CPU or on another one.

    Attributes:
        script: for sh; writes `$1` bytes to its output.
    """

    writer: str
    script: str
    same_cpu: bool

    @property
    def name(self) -> str:
        return f"{self.writer}, {'one CPU' if self.same_cpu else 'two CPUs'}"


_WRITERS = {
    "64 KiB writes (dd)": "exec dd if=/dev/zero bs=64K count=$(($1 / 65536)) status=none",
    "small writes (head)": 'exec head -c "$1" /dev/zero',
}


def measure(scale: Scale) -> Outcome:
    cpus = sorted(os.sched_getaffinity(0))
    cases = [
        Case(writer, script, same_cpu)
        for writer, script in _WRITERS.items()
        for same_cpu in (True, False)
        if same_cpu or len(cpus) > 1
    ]
    through: dict[Case, list[float]] = {case: [] for case in cases}
    straight: dict[Case, list[float]] = {case: [] for case in cases}
    with agents.running() as agent, agents.stub(agent) as service:
        os.sched_setaffinity(parts(agent).supervisor, {cpus[0]})
        for _ in range(scale.rounds):
            for case in cases:
                cpu = cpus[0] if case.same_cpu else cpus[1]
                through[case].append(_seconds(agent, service, case.script, cpu, scale.pump_bytes))
                straight[case].append(_seconds(agent, service, f"exec >own; {case.script}", cpu, scale.pump_bytes))
    return _outcome(through, straight, scale.pump_bytes)


def _seconds(agent: Agent, service: JobWorkerServiceStub, script: str, cpu: int, size: int) -> float:
    """From the job's start to its end, by the agent's own clock; nothing that it wrote is left on the disk."""
    command = ("taskset", "--cpu-list", str(cpu), "sh", "-c", script, "sh", str(size))
    started = service.Start(agents.start_request(command)).job
    wait_for_end(started.pid)
    ended = agents.wait_ended(service, started.id)
    if ended.exit_code or ended.log_bytes not in (0, size):
        raise RuntimeError(f"the job wrote {ended.log_bytes} of {size} bytes and ended with {ended.exit_code}")
    # Not the job's directory itself, in which the flusher may be making a file.
    for directory in ("logs", "work"):
        shutil.rmtree(os.path.join(agent.state_dir, "jobs", ended.id, directory))
    return (ended.ended_at.ToNanoseconds() - ended.started_at.ToNanoseconds()) / 1e9


def _outcome(through: dict[Case, list[float]], straight: dict[Case, list[float]], size: int) -> Outcome:
    rows = tuple(_rows(through, straight, size))
    note = (
        f"Each job writes {size // MIB} MiB, interleaved. One CPU: supervisor and job are pinned to the same one. "
        "In the log the bytes lie in segments of 5 MiB, each with its index."
    )
    head = ("", "through the agent MiB/s", "straight to a file MiB/s", "ratio")
    case = next(iter(through))
    ratio = median(straight[case]) / median(through[case])
    figure = above(f"pump / straight to a file ({case.name})", ratio, _REACH)
    return Outcome((Table("Output of a job that floods", head, rows, (note,)),), (figure,))


def _rows(
    through: dict[Case, list[float]], straight: dict[Case, list[float]], size: int
) -> Iterator[tuple[str, ...]]:
    for case, times in through.items():
        pumped, written = (size / MIB / median(values) for values in (times, straight[case]))
        yield case.name, f"{pumped:.0f}", f"{written:.0f}", f"{pumped / written:.2f}"

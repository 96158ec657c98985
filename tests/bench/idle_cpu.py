"""CPU time that the agent takes for jobs that do nothing."""

from __future__ import annotations

import time
from dataclasses import asdict

from bench import agents
from bench.processes import cpu_seconds, parts
from bench.report import Figure, Outcome, Table
from bench.scale import Scale

# What "0.0 %" means.
_MOST_PERCENT = 0.05


def measure(scale: Scale) -> Outcome:
    with agents.running() as agent, agents.stub(agent) as service:
        agents.start_jobs(service, agents.QUIET, scale.many_jobs)
        pids = asdict(parts(agent))
        # What the starts have left to do is not what is measured.
        time.sleep(1)
        before = {part: cpu_seconds(pid) for part, pid in pids.items()}
        time.sleep(scale.idle_seconds)
        percent = {
            part: (cpu_seconds(pid) - before[part]) / scale.idle_seconds * 100 for part, pid in pids.items()
        }
    rows = tuple((part, f"{value:.3f}") for part, value in percent.items())
    note = f"Over {scale.idle_seconds:.0f} s, with {scale.many_jobs} jobs that sleep."
    total = sum(percent.values())
    what = f"idle CPU with {scale.many_jobs} quiet jobs"
    figure = Figure(what, "0.0 %", f"{total:.2f} %", total < _MOST_PERCENT)
    return Outcome((Table("CPU at rest", ("", "% of one CPU"), rows, (note,)),), (figure,))

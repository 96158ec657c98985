"""Jobs a second, each from its start to its end."""

from __future__ import annotations

from dataclasses import asdict

from bench import agents, peers
from bench.processes import cpu_seconds, parts
from bench.report import Outcome, Table, above
from bench.scale import Scale
from bench.stats import median

_CLIENTS = 50
_COMMAND = ("/bin/sh", "-c", "echo done")
_TIMES_CRUN = 3.0


def measure(scale: Scale) -> Outcome:
    costs: list[dict[str, float]] = []
    with (
        agents.running() as agent,
        agents.scratch(agent.directory) as directory,
        peers.all_peers(agent, directory, _CLIENTS) as contenders,
    ):
        pids = asdict(parts(agent))
        rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        for _ in range(scale.rounds):
            for contender in contenders:
                before = _cpu(pids)
                lives = contender.live(_COMMAND, _CLIENTS, scale.rate_seconds)
                rates[contender.name].append(lives.count / lives.seconds)
                if isinstance(contender, peers.AgentPeer):
                    costs.append({part: (used - before[part]) / lives.count for part, used in _cpu(pids).items()})
    return _outcome(rates, costs)


def _cpu(pids: dict[str, int]) -> dict[str, float]:
    """CPU time of each process so far, in milliseconds."""
    return {part: cpu_seconds(pid) * 1000 for part, pid in pids.items()}


def _outcome(rates: dict[str, list[float]], costs: list[dict[str, float]]) -> Outcome:
    own = median(rates[peers.AgentPeer.name])
    rows = tuple((name, f"{median(values):.0f}", f"{own / median(values):.2f}") for name, values in rates.items())
    note = (
        f"{_CLIENTS} clients at once, each with a connection (or a process) of its own, interleaved rounds. The "
        "job is `sh -c 'echo done'`. For the agent a life is Start, then Stream until the output has ended."
    )
    table = Table("Whole lives a second", ("", "jobs/s", "jobworker / it"), rows, (note, peers.left_out()))
    cost_rows = tuple((name, f"{median([cost[name] for cost in costs]):.2f}") for name in costs[0])
    cost_table = Table("What one job's life takes of a CPU", ("", "ms"), cost_rows)
    crun = rates.get("crun run")
    figures = (above("lives a second / crun run", own / median(crun), _TIMES_CRUN),) if crun else ()
    return Outcome((table, cost_table), figures)

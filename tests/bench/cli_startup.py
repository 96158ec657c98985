"""The command line, each time a new process."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from bench import agents
from bench.report import Outcome, Table, below
from bench.scale import Scale
from bench.stats import median

_MOST_MS = {"worker-client --help": 100.0, "worker-client list": 350.0}


def measure(scale: Scale) -> Outcome:
    with agents.running() as agent:
        commands = {
            "worker-client --help": [os.path.join(os.path.dirname(sys.executable), "worker-client"), "--help"],
            "worker-client list": agent.command("list"),
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import click'": [sys.executable, "-c", "import click"],
            "python -c 'import grpc'": [sys.executable, "-c", "import grpc"],
        }
        # As installed: pip compiles what it installs, and an editable installation is compiled by its first start.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        samples: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(-1, scale.cold_starts):
            for name, command in commands.items():
                begin = time.perf_counter()
                subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=environment)
                if number >= 0:
                    samples[name].append((time.perf_counter() - begin) * 1000)
    floor = median(samples["python -c pass"])
    rows = tuple(
        (name, f"{median(times):.0f}", f"{max(times):.0f}", f"{median(times) / floor:.1f}")
        for name, times in samples.items()
    )
    note = f"{scale.cold_starts} processes each, interleaved, of compiled modules; `list` connects and finds none."
    figures = tuple(below(name, median(samples[name]), most, " ms") for name, most in _MOST_MS.items())
    table = Table("Command line start-up", ("", "p50 ms", "longest ms", "/ python -c pass"), rows, (note,))
    return Outcome((table,), figures)

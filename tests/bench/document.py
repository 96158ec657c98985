"""docs/benchmarks.md: the tables of a run, and what they were measured on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata

from bench.report import Outcome, figures_table

_INTRODUCTION = """\
# Benchmarks

Written by `make bench`, which measures the agent and its peers side by side, in one run on one machine, turn and
turn about. Numbers of different machines do not compare; ratios of one run do. All is on 127.0.0.1, over mutual
TLS 1.3 with RSA-4096 certificates, with an agent as `worker-agent dev` runs it. Unless a table says otherwise,
figures are medians.

    make bench                                     # all of it, in some twenty minutes; writes this page
    make bench BENCH="--quick"                     # in less than two minutes
    make bench BENCH="--only start,pump"           # some of it

As root, everything is measured; an ordinary user has no limits and no containers to compare with. The peers are
Debian's packages task-spooler, crun and runc. The containers share the host's programs, have four namespaces (pid,
mount, ipc, uts) and one limit (pids), as a job has by default. crun refuses a host with cgroup v1 and v2 side by
side, so there it is started where it cannot see v2.
"""

_LIBRARIES = ("grpcio", "protobuf", "cryptography")
_PEERS = {"tsp": "-V", "crun": "--version", "runc": "--version"}


def write(path: str, outcomes: Sequence[Outcome]) -> None:
    figures = [figure for outcome in outcomes for figure in outcome.figures]
    tables = [table.markdown() for outcome in outcomes for table in outcome.tables]
    machine = "## The machine\n\n" + "".join(f"- {fact}\n" for fact in _facts())
    text = "\n".join((_INTRODUCTION, machine, "## Results\n", *tables, figures_table(figures).markdown()))
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def _facts() -> Iterator[str]:
    yield f"date: {datetime.now(UTC):%Y-%m-%d}"
    # What follows the version is a builder's own, and may name a host.
    yield f"kernel: Linux {platform.release().split('-')[0]}, {platform.machine()}"
    yield f"CPUs: {len(os.sched_getaffinity(0))}"
    yield f"Python {platform.python_version()}, {', '.join(f'{n} {metadata.version(n)}' for n in _LIBRARIES)}"
    yield f"file system of the agent's state: {_file_system(tempfile.gettempdir())}"
    yield f"user: {'root' if os.geteuid() == 0 else 'not root'}"
    yield from (_version(name, option) for name, option in _PEERS.items() if shutil.which(name))


def _file_system(path: str) -> str:
    """The type of the file system that a directory is on: that of the longest mount point above it."""
    directory = os.path.join(os.path.realpath(path), "")
    with open("/proc/self/mounts", encoding="utf-8") as file:
        mounts = [line.split() for line in file]
    above = [(len(point), kind) for _, point, kind, *_ in mounts if directory.startswith(os.path.join(point, ""))]
    return max(above)[1]


def _version(program: str, option: str) -> str:
    return subprocess.run([program, option], capture_output=True, text=True, check=False).stdout.splitlines()[0]

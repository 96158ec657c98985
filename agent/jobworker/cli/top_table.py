"""What jobs use, as a table and as plain data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobworker.cli import client_text
from jobworker.cli.top_sample import Picture, Use
from jobworker.printable import inline

SORTS: dict[str, Callable[[Use], float]] = {
    "cpu": lambda use: use.cpu,
    "memory": lambda use: use.job.usage.memory_bytes,
    "io": lambda use: use.read + use.written,
    "pids": lambda use: use.job.usage.processes,
}
_HEAD = ("ID", "HOST", "BY", "  CPU%", "MEMORY", "READ/s", "WRITE/s", "PIDS", "AGE", "COMMAND")
_HOST_WIDTH = 16


def rows(picture: Picture, sort: str, now: float) -> list[str]:
    """The table's head, and a line for each job, who uses most before the others.

    Args:
        picture: of the jobs.
        sort: a name of `SORTS`.
        now: Unix time in seconds.
    """
    uses = sorted(picture.uses, key=SORTS[sort], reverse=True)
    return client_text.aligned([_HEAD, *(_row(use, now) for use in uses)]).split("\n")


def _row(use: Use, now: float) -> tuple[str, ...]:
    job = use.job
    return (
        job.id,
        inline(use.host)[:_HOST_WIDTH],
        job.principal.rpartition("/")[2],
        f"{use.cpu:6.1f}" if use.measured else "     -",
        f"{_size(job.usage.memory_bytes):>6}",
        f"{_size(use.read) if use.measured else '-':>6}",
        f"{_size(use.written) if use.measured else '-':>7}",
        f"{job.usage.processes:>4}",
        client_text.age(now - job.created_at.seconds),
        client_text.cut(client_text.command(job)),
    )


def _size(count: float) -> str:
    return client_text.size(int(count)).removesuffix(" bytes")


def plain(use: Use) -> dict[str, Any]:
    """One job; `None` for what two looks were too few for."""
    return {
        "type": "use",
        "id": use.job.id,
        "host": use.host,
        "principal": use.job.principal,
        "cpu_percent": round(use.cpu, 1) if use.measured else None,
        "memory_bytes": use.job.usage.memory_bytes,
        "io_read_bytes_per_second": round(use.read) if use.measured else None,
        "io_written_bytes_per_second": round(use.written) if use.measured else None,
        "processes": use.job.usage.processes,
        "command": use.job.command,
        "args": list(use.job.args),
    }

"""Audit trails: made by the supervisor's own code, read back, and checked as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobworker.chain import Head, split
from jobworker.cli.audit_verify import Report, Verifier
from jobworker.identity import Role
from jobworker.supervisor.log import Log
from jobworker.supervisor.trail import Trail, body
from jobworker.wire.callers import Caller, CallReport
from support.link import DEADLINE
from support.waiting import until

AGENT = os.path.join(os.path.dirname(sys.executable), "worker-agent")


def open_trail(directory: Path, *, max_bytes: int = 1 << 20, keep: int = 100, lost: int = 0) -> Trail:
    """A trail `jobs`, as one life of a supervisor has it."""

    def opened() -> int:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    return Trail(Log("error"), "jobs", opened, max_bytes, keep, lost, lambda _: None)


def write(trail: Trail, *texts: str) -> None:
    """A line for each text, written at once."""
    for text in texts:
        trail.add(body("supervisor", "test", text=text))
    assert trail.flush(), trail.failing


def verify(directory: Path, *anchors: Head) -> Report:
    return Verifier(str(directory), "jobs", anchors).run(begin=lambda _: None)


def problems(report: Report) -> list[str]:
    return [finding.problem for finding in report.findings]


def events(state_dir: str, trail: str, *, damaged: bool = False) -> list[dict[str, Any]]:
    """All lines of a trail, the oldest first. Fails on whatever is not one line of JSON in ASCII.

    Args:
        state_dir: the agent's.
        trail: its name.
        damaged: leave out what is none instead.
    """
    directory = Path(state_dir, "audit")
    closed = sorted(directory.glob(f"{trail}.log.*"), key=lambda path: int(path.suffix[1:]))
    data = b"".join(path.read_bytes() for path in (*closed, directory / f"{trail}.log"))
    lines = data.split(b"\n")
    if damaged:
        return [json.loads(line) for line in lines if split(line)]
    assert lines.pop() == b""
    assert all(0x20 <= byte < 0x7F for line in lines for byte in line)
    return [json.loads(line) for line in lines]


def audit(state_dir: str, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`worker-agent audit`."""
    run = [AGENT, "audit", command, "--state-dir", state_dir, *arguments]
    return subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)


def of(job_id: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are about a job."""
    return [line for line in lines if line.get("job") == job_id]


def names(lines: list[dict[str, Any]]) -> list[str]:
    """Of their events."""
    return [line["event"] for line in lines]


def wait_for_line(state_dir: str, trail: str, suits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first such line. The gateway reports a little later than it acts."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = [line for line in events(state_dir, trail, damaged=True) if suits(line)]
        return bool(found)

    until(there, True, DEADLINE)
    return found[0]


def wait_for_stream(state_dir: str, **fields: str) -> dict[str, Any]:
    """The line of a stream that has been let in, by what else it says."""

    def suits(line: dict[str, Any]) -> bool:
        return line["event"] == "stream_opened" and line.items() >= fields.items()

    return wait_for_line(state_dir, "calls", suits)


NASTY = 'x","by":"supervisor","event":"job_started"}\n{"seq":1,"by":"supervisor"}\r\x1b[2J\u2028\x7f\0\udcff'


def report(**changes: Any) -> CallReport:
    """By a gateway that says anything it likes."""
    fields: dict[str, Any] = {
        "event": "call",
        "caller": Caller(NASTY, Role.WRITER, NASTY, NASTY, NASTY),
        "rpc": NASTY,
        "allowed": True,
        "code": NASTY,
        "reason": NASTY,
        "detail": NASTY,
        "job_id": NASTY,
        "at_ns": -1,
        "took_ms": -1,
    }
    return CallReport(**fields | changes)

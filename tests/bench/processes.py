"""What the kernel tells of processes."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from support.agent import Agent

_CPUCLOCK_SCHED = 2


@dataclass(frozen=True, slots=True)
class Parts:
    """The agent's processes, by pid."""

    keeper: int
    supervisor: int
    flusher: int
    gateway: int


@dataclass(frozen=True, slots=True)
class Memory:
    """In KiB. `pss` counts a page that n processes share as 1/n of it."""

    rss: float
    pss: float


def parts(agent: Agent) -> Parts:
    keeper = _child(agent.process.pid, "cmdline", b"keeper/__main__.py")
    return Parts(
        keeper,
        supervisor_of(keeper),
        _child(keeper, "comm", b"jw-flusher"),
        _child(agent.process.pid, "cmdline", b"jobworker.gateway"),
    )


def compressor(agent: Agent) -> int:
    """The process that compresses logs, once there was something to compress."""
    return _child(parts(agent).keeper, "comm", b"jw-compressor")


def supervisor_of(keeper: int) -> int:
    return _child(keeper, "comm", b"jw-supervisor")


def _child(parent: int, file: str, text: bytes) -> int:
    """The child that has this text in a file of its folder in /proc."""
    with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as children:
        pids = [int(pid) for pid in children.read().split()]
    for pid in pids:
        # Others may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/{file}", "rb") as told:
            if text in told.read():
                return pid
    raise LookupError(f"no child of {parent} has {text!r} in its {file}")


def memory(pid: int) -> Memory:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file.readlines()[1:])
    rss, pss = (float(fields[name].split()[0]) for name in ("Rss", "Pss"))
    return Memory(rss, pss)


def peak_kib(pid: int) -> int:
    """The most that a process has held of memory so far."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, to the nanosecond: clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)

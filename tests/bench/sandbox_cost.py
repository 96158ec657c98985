"""What each part of a sandbox costs the process that goes into it."""

from __future__ import annotations

import os
import struct
import time

from bench import agents
from bench.report import Outcome, Table
from bench.scale import Scale
from bench.stats import median, p99
from jobworker.kernel import seccomp
from jobworker.kernel.confinement import Confinement, private_directories
from jobworker.sandbox import PARTS, Part, Profile

_TIME = struct.Struct("d")
# Each entry is a process of its own, and leaves the kernel a namespace to take down.
_PAUSE = 0.01


def measure(scale: Scale) -> Outcome:
    if os.geteuid() != 0:
        return Outcome(
            (Table("Going into a sandbox", ("", "p50 us", "p99 us"), (), ("Left out: it needs root.",)),)
        )
    whole = {f"all of {profile.value}": frozenset(PARTS[profile]) for profile in Profile}
    # The init of a PID namespace is started beside the job and is in the latency of a start.
    alone = {part.value: frozenset({part}) for part in Part if part is not Part.PID_NAMESPACE}
    with agents.scratch() as directory:
        ready = seccomp.Filter(seccomp.make())
        samples = {name: _enter(directory, parts, ready, scale.starts) for name, parts in (alone | whole).items()}
    rows = tuple((name, f"{median(times):.0f}", f"{p99(times):.0f}") for name, times in samples.items())
    note = (
        f"{scale.starts} processes each, between their fork and where they would execute the command. A part that "
        "needs a mount namespace is charged for it whole, so that the parts add up to more than their profile."
    )
    return Outcome((Table("Going into a sandbox", ("", "p50 us", "p99 us"), rows, (note,)),))


def _enter(directory: str, parts: frozenset[Part], ready: seccomp.Filter, times: int) -> list[float]:
    """Microseconds, each in a process of its own."""
    with_filter = ready if Part.SYSTEM_CALLS in parts else None
    # A filter needs this, and it costs next to nothing.
    confinement = Confinement(parts | {Part.NO_NEW_PRIVILEGES}, directory, (), private_directories(), with_filter)
    samples = []
    for _ in range(times):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, _TIME.pack(_seconds_to_enter(confinement)))
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, "rb") as said:
            samples.append(_TIME.unpack(said.read())[0] * 1e6)
        os.waitpid(child, 0)
        time.sleep(_PAUSE)
    return samples


def _seconds_to_enter(confinement: Confinement) -> float:
    def begin(step: str) -> None:
        del step

    os.chdir(confinement.own_directory)
    begun = time.perf_counter()
    confinement.isolate(begin)
    confinement.renounce(begin)
    confinement.seal(begin)
    return time.perf_counter() - begun

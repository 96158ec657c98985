"""From asking for a start to the job's first instruction."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence

from bench import agents, peers
from bench.report import Outcome, Table, below
from bench.scale import Scale
from bench.stats import median, p99
from support.agent import DEADLINE

# Back to back, starts share what the first one pays for: an RCU grace period, warm caches.
_PAUSE = 0.1
_TAIL = 3.0


class Mark:
    """A FIFO that a job writes a line to as its first act; who waits for it is woken."""

    def __init__(self, directory: str) -> None:
        path = os.path.join(directory, "mark")
        os.mkfifo(path)
        os.chmod(path, 0o666)  # noqa: S103 - jobs are other users
        # For both, so that a writer never waits for a reader and the end is never seen.
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.command = ("/bin/sh", "-c", f"echo >{path}")

    def wait(self) -> None:
        if not select.select([self._fd], [], [], DEADLINE)[0]:
            raise TimeoutError("a job does not start")
        os.read(self._fd, 1)

    def close(self) -> None:
        os.close(self._fd)


def measure(scale: Scale) -> Outcome:
    with agents.running() as agent, agents.scratch(agent.directory) as directory:
        mark = Mark(directory)
        with peers.all_peers(agent, directory, clients=1) as contenders, agents.stub(agent) as service:
            others = [peers.AgentPeer(agent, service, profile) for profile in ("strict", "host")]
            samples = _interleaved([*contenders, *others], mark, scale.starts)
        mark.close()
    return _outcome(samples)


def _interleaved(contenders: Sequence[peers.Peer], mark: Mark, starts: int) -> dict[str, list[float]]:
    """Milliseconds of each start, by contender; the first round is a warm-up."""
    samples: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(starts + 1):
        for contender in contenders:
            time.sleep(_PAUSE)
            begin = time.perf_counter()
            wait = contender.start(mark.command)
            mark.wait()
            if number:
                samples[contender.name].append((time.perf_counter() - begin) * 1000)
            wait()
    return samples


def _outcome(samples: dict[str, list[float]]) -> Outcome:
    own = samples[peers.AgentPeer.name]
    rows = tuple(
        (name, f"{median(times):.2f}", f"{p99(times):.2f}", f"{median(own) / median(times):.2f}")
        for name, times in samples.items()
    )
    note = (
        f"{len(own)} starts each, interleaved, {_PAUSE * 1000:.0f} ms apart. The job is `sh -c 'echo >FIFO'`; "
        "the clock stops when the benchmark is woken by that line, so every row holds the start of a shell."
    )
    table = Table(
        "Start to first instruction", ("", "p50 ms", "p99 ms", "jobworker / it"), rows, (note, peers.left_out())
    )
    rivals = [name for name in samples if name.startswith(("crun", "systemd-run"))]
    figures = [below(f"start p50 / {name}", median(own) / median(samples[name]), 1.0) for name in rivals]
    return Outcome((table,), (*figures, below("start p99 / its own p50", p99(own) / median(own), _TAIL)))

"""A million lines, in turn on standard output and standard error: all there, each in its order."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from support.agent import Agent, running_agent

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

EACH = 500_000
SCRIPT = f"""
import os
for number in range({EACH}):
    os.write(1, b"out %d\\n" % number)
    os.write(2, b"err %d\\n" % number)
"""


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with running_agent() as running:
        yield running


@pytest.fixture(scope="module")
def job_id(agent: Agent) -> str:
    job_id = agent.start_job("--", "python3", "-c", SCRIPT)
    agent.cli("wait", job_id, "--timeout", "5m", check=True)
    return job_id


def lines(agent: Agent, *words: str) -> Iterator[bytes]:
    """Of a stream, as it comes."""
    with subprocess.Popen(agent.command("stream", *words), stdout=subprocess.PIPE) as stream:
        assert stream.stdout
        yield from stream.stdout
    assert stream.returncode == 0


@pytest.mark.parametrize("source", ["out", "err"])
def test_each_stream_is_complete_and_in_order(agent: Agent, job_id: str, source: str) -> None:
    wanted = (b"%s %d\n" % (source.encode(), number) for number in range(EACH))
    for found, line in zip(lines(agent, job_id, f"--std{source}"), wanted, strict=True):
        assert found == line


def test_both_together_are_complete_and_time_never_goes_back(agent: Agent, job_id: str) -> None:
    counts, last = {b"out": 0, b"err": 0}, b""
    for line in lines(agent, job_id, "--timestamps"):
        time, _, rest = line.partition(b" ")
        source = rest[:3]
        assert rest == b"%s %d\n" % (source, counts[source])
        assert time >= last, f"{line!r} is before what was written before it"
        counts[source], last = counts[source] + 1, time
    assert set(counts.values()) == {EACH}

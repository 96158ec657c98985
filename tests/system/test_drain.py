"""A host that takes no new jobs, over the deaths of its agent."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker.errors import AgentDraining
from jobworker.jobs import Idempotency, JobSpec
from jobworker.wire.messages import (
    Drain,
    DrainChanged,
    Drained,
    StartJob,
    Upgrade,
)
from support import processes
from support.agent import DEADLINE, Agent, running_agent
from support.link import CALLER
from support.root_side import root_side
from support.trails import wait_for_stream

pytestmark = pytest.mark.root


def test_no_job_is_taken_until_it_is_over_whatever_dies(tmp_path: Path) -> None:
    with root_side(str(tmp_path)) as side:
        link, watching = side.link(), side.link(subscribe=True)
        key = StartJob(CALLER, JobSpec("/bin/sleep", ("1000",)), Idempotency("k", "d"))
        running = link.ask(key).record.job_id
        assert not watching.welcome.host.draining
        assert link.ask(Drain(CALLER, draining=True)) == Drained(draining=True, active=(running,))
        watching.wait_event(lambda event: event == DrainChanged(draining=True))
        with pytest.raises(AgentDraining):
            link.start("/bin/true")
        assert link.ask(key).record.job_id == running, "what was started before is no new job"
        os.kill(side.supervisor_pid(), signal.SIGKILL)
        link.drain()
        link = side.reconnect()
        assert link.welcome.host.draining
        upgrading = side.link()
        upgrading.ask(Upgrade())
        upgrading.drain()
        link = side.reconnect()
        with pytest.raises(AgentDraining):
            link.start("/bin/true")
        assert link.ask(Drain(CALLER, draining=True)) == Drained(draining=True, active=(running,))
        assert link.stop(running, force=True).job_id == running
        assert link.ask(Drain(CALLER, draining=False)) == Drained(draining=False, active=())
        assert link.ask(Drain(CALLER, draining=False)) == Drained(draining=False, active=())
        assert link.start("/bin/true").job_id
        side.restart()
        assert not side.link().welcome.host.draining


def test_the_file_is_nobody_elses(tmp_path: Path) -> None:
    with root_side(str(tmp_path)) as side:
        side.link().ask(Drain(CALLER, draining=True))
        assert stat.S_IMODE(os.stat(os.path.join(side.state_dir, "draining")).st_mode) == 0o600


@pytest.fixture
def own_agent() -> Iterator[Agent]:
    with running_agent() as running:
        yield running


def test_the_commands(own_agent: Agent) -> None:
    agent = own_agent
    job = agent.start_job("sleep", "1000")
    assert agent.cli("drain", role="reader").returncode == 4
    draining = agent.cli("drain", "--format", "json", check=True)
    assert json.loads(draining.stdout) == {"draining": True, "active_job_ids": [job]}
    refused = agent.cli("start", "--idempotency-key", "k", "true")
    assert (refused.returncode, b"draining and takes no new jobs" in refused.stderr) == (1, True)
    assert b"takes no new jobs" in agent.cli("info", check=True).stdout
    command = agent.command("drain", "--wait", "--timeout", "50s", "--request-id", "waits")
    with processes.running(command, stdout=subprocess.PIPE) as waiting:
        wait_for_stream(agent.state_dir, request="waits")
        agent.cli("stop", job, check=True)
        told, _ = waiting.communicate(timeout=DEADLINE)
    assert (waiting.returncode, told.splitlines()[-1]) == (0, b"drained: no job is active")
    assert agent.cli("undrain", check=True).stdout == b"new jobs are taken\n"
    agent.start_job("sleep", "1000")
    late = agent.cli("drain", "--wait", "--timeout", "5s")
    assert (late.returncode, b"has not ended in time" in late.stderr) == (124, True)
    assert agent.cli("drain", "--timeout", "1s").returncode == 2

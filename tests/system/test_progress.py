"""What `worker-client` shows on a terminal while it waits, and that it leaves nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.agent import Agent, running_agent
from support.terminals import ERASE_LINE, terminal


def test_a_wait_shows_how_many_jobs_it_is_for(agent: Agent) -> None:
    first, second = (agent.start_job("--", "sleep", "1000") for _ in range(2))
    with terminal(agent.command("wait", first, second)) as shown:
        shown.wait_for_bytes(b"waiting for 2 jobs")
        agent.cli("stop", second, check=True)
        shown.wait_for_bytes(f"waiting for job {first}".encode())
        agent.cli("stop", first, check=True)
        assert shown.end() == 143
        assert shown.lines_left() == [f"{second}  STOPPED", f"{first}  STOPPED"]


def test_a_stop_shows_what_it_waits_for(agent: Agent) -> None:
    job_id = agent.start_job("--label", "stays=yes", "--", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    with terminal(agent.command("stop", "--label", "stays=yes", "--grace", "10m")) as shown:
        shown.wait_for_bytes(f"stopping job {job_id}, 1 of 1".encode())
        agent.cli("stop", job_id, "--force", check=True)
        assert shown.end() == 0
        assert shown.lines_left() == [f"{job_id}  STOPPED"]


def test_a_drain_shows_how_many_jobs_are_left() -> None:
    with running_agent() as own_agent:
        jobs = [own_agent.start_job("--", "sleep", "1000") for _ in range(2)]
        with terminal(own_agent.command("drain", "--wait")) as shown:
            for job_id, waited_for in zip(jobs, (b"waiting for 2 jobs to", b"waiting for a job to"), strict=True):
                shown.wait_for_bytes(waited_for)
                own_agent.cli("stop", job_id, check=True)
            assert shown.end() == 0
            assert shown.lines_left()[-1] == "drained: no job is active"


def frozen_reader(agent: Agent) -> str:
    """A job that reads all its input, once it gets SIGCONT."""
    return agent.start_job("--stdin-open", "--", "sh", "-c", "kill -STOP $$; cat > /dev/null")


def test_input_that_is_written_shows_how_much_of_it(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(5_000_000))
    job_id = frozen_reader(agent)
    with terminal(agent.command("write", job_id, str(tmp_path / "data"))) as shown:
        shown.wait_for_bytes(b"64K of 4.8M written (1 %)")
        agent.cli("signal", job_id, "CONT", check=True)
        assert shown.end() == 0
        assert shown.lines_left() == [f"{job_id}  5000000 bytes, ended"]


def test_the_speed_shows_once_there_is_one(agent: Agent) -> None:
    slow = "while dd bs=64K count=1 status=none | grep -q ''; do sleep 0.1; done"
    job_id = agent.start_job("--stdin-open", "--", "sh", "-c", slow)
    with terminal(["sh", "-c", 'head -c 4M /dev/zero | "$@"', "-", *agent.command("write", job_id)]) as shown:
        shown.wait_for_bytes(b"/s")
        assert b"M written, " in shown.shown
        agent.cli("stop", job_id, check=True)
        assert shown.end() == 1


def test_a_start_with_much_input_shows_how_much_of_it(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(5_000_000))
    with terminal(agent.command("start", "--stdin", str(tmp_path / "data"), "--", "cat")) as shown:
        shown.wait_for_bytes(b" of 4.8M written (")
        assert shown.end() == 0
        (job_id,) = shown.lines_left()
        assert agent.query(job_id)["stdin_bytes"] == 5_000_000


def test_a_line_of_progress_fits_its_terminal(agent: Agent) -> None:
    job_id = agent.start_job("--", "sleep", "1000")
    with terminal(agent.command("wait", job_id), columns=20) as shown:
        shown.wait_for_bytes(b"waiting for job ")
        agent.cli("stop", job_id, check=True)
        shown.end()
        assert ERASE_LINE + f"waiting for job {job_id}"[:19].encode() + ERASE_LINE in shown.shown


@pytest.mark.parametrize("kind", ["dumb", "none"])
def test_where_a_line_cannot_be_erased_none_is_shown(agent: Agent, kind: str) -> None:
    job_id = agent.start_job("--", "sh", "-c", "sleep 0.3")
    if kind == "none":
        assert agent.cli("wait", job_id).stderr == b""
        return
    with terminal(agent.command("wait", job_id), TERM="dumb") as shown:
        assert shown.end() == 0
        assert shown.shown == f"{job_id}  EXITED 0\r\n".encode()

"""Signals to jobs, and jobs that are deleted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from jobworker.errors import InvalidField, JobAlreadyEnded, JobNotEnded, JobNotFound, MainProcessEnded
from jobworker.jobs import EndReason, Idempotency, JobRecord, JobSpec, State
from jobworker.wire.messages import (
    DeleteJob,
    Done,
    JobRemoved,
    SignalJob,
    StartJob,
)
from support.agent import Agent
from support.leftovers import processes_of
from support.link import CALLER, Link
from support.root_side import root_side

pytestmark = pytest.mark.root

# Its child traps as well, and both say so.
TRAPS = (
    "trap 'echo parent 1' USR1; trap 'echo parent 2' USR2; "
    'sh -c \'trap "echo child 1" USR1; trap "echo child 2" USR2; echo up; while :; do sleep 0.01; done\' & '
    "while :; do sleep 0.01; done"
)


def lines(link: Link, record: JobRecord) -> set[str]:
    return set(link.read_log(link.inspect(record.job_id)).decode().splitlines())


def wait_line(link: Link, record: JobRecord, wanted: str) -> None:
    """Wait until the job has written this; a shell also says what its children were ended by."""
    while wanted not in lines(link, record):
        pass


def test_a_signal_goes_to_the_main_process_or_to_all(link: Link) -> None:
    record = link.start("/bin/sh", "-c", TRAPS)
    wait_line(link, record, "up")
    assert link.ask(SignalJob(CALLER, record.job_id, signal.SIGUSR1, everyone=False)).record.state is State.RUNNING
    wait_line(link, record, "parent 1")
    link.ask(SignalJob(CALLER, record.job_id, signal.SIGUSR2, everyone=True))
    for who in ("parent", "child"):
        wait_line(link, record, f"{who} 2")
    # It would have said so before.
    assert "child 1" not in lines(link, record)
    link.stop(record.job_id, force=True)


def test_what_a_signal_ends_has_ended_by_itself(link: Link) -> None:
    record = link.start("/bin/sleep", "1000")
    link.ask(SignalJob(CALLER, record.job_id, signal.SIGINT, everyone=False))
    ended = link.wait_ended(record.job_id)
    assert (ended.end_reason, ended.signal) == (EndReason.SIGNALED, signal.SIGINT)
    with pytest.raises(JobAlreadyEnded):
        link.ask(SignalJob(CALLER, record.job_id, signal.SIGINT, everyone=False))


@pytest.mark.parametrize("sandbox", ["standard", "strict"])
def test_a_job_is_halted_and_goes_on(link: Link, sandbox: str) -> None:
    record = link.start("/bin/sh", "-c", "sleep 1000 & wait", sandbox=sandbox)
    link.ask(SignalJob(CALLER, record.job_id, signal.SIGSTOP, everyone=True))
    while {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in _processes(record)} != {
        "T"
    }:
        pass
    link.ask(SignalJob(CALLER, record.job_id, signal.SIGCONT, everyone=True))
    assert link.stop(record.job_id).end_reason is EndReason.STOPPED


def _processes(record: JobRecord) -> list[int]:
    return processes_of(record.uid)


def test_without_a_main_process_only_all_are_reached(link: Link) -> None:
    record = link.start("/bin/sh", "-c", "sleep 1000 & exit 3")
    while link.inspect(record.job_id).exit_code is None:
        pass
    with pytest.raises(MainProcessEnded):
        link.ask(SignalJob(CALLER, record.job_id, signal.SIGTERM, everyone=False))
    link.ask(SignalJob(CALLER, record.job_id, signal.SIGTERM, everyone=True))
    assert link.wait_ended(record.job_id).exit_code == 3


@pytest.mark.parametrize("number", [0, -1, 65, 2**31])
def test_what_is_no_signal_is_refused_by_root_as_well(link: Link, number: int) -> None:
    record = link.start("/bin/sleep", "1000")
    with pytest.raises(InvalidField):
        link.ask(SignalJob(CALLER, record.job_id, number, everyone=True))
    assert link.stop(record.job_id, force=True).end_reason is EndReason.STOPPED


def test_a_deleted_job_is_gone_with_all_its_files(tmp_path: Path) -> None:
    with root_side(str(tmp_path), keep_ended=3) as side:
        link, watching = side.link(subscribe=True), side.link(subscribe=True)
        key = StartJob(CALLER, JobSpec("/bin/sh", ("-c", "echo x > file; echo out")), Idempotency("k", "d"))
        record = link.wait_ended(link.ask(key).record.job_id)
        others = [link.wait_ended(link.start("/bin/true").job_id) for _ in range(2)]
        assert link.ask(DeleteJob(CALLER, record.job_id)) == Done()
        for gone in (lambda: link.inspect(record.job_id), lambda: link.ask(DeleteJob(CALLER, record.job_id))):
            with pytest.raises(JobNotFound):
                gone()
        event = watching.wait_event(lambda event: isinstance(event, JobRemoved))
        assert (event.job_id, event.revision > record.revision) == (record.job_id, True)
        side.wait_for(lambda: not os.listdir(os.path.join(side.state_dir, "removed")))
        assert sorted(os.listdir(os.path.join(side.state_dir, "jobs"))) == sorted(other.job_id for other in others)
        # Its key is free, and it does not count among those that are kept.
        again = link.wait_ended(link.ask(key).record.job_id)
        assert again.job_id != record.job_id
        assert {link.inspect(other.job_id).job_id for other in others} == {other.job_id for other in others}
        os.kill(side.supervisor_pid(), signal.SIGKILL)
        link.drain()
        after = side.reconnect(subscribe=True)
        with pytest.raises(JobNotFound):
            after.inspect(record.job_id)


def test_what_runs_is_not_deleted(link: Link) -> None:
    record = link.start("/bin/sleep", "1000")
    with pytest.raises(JobNotEnded):
        link.ask(DeleteJob(CALLER, record.job_id))
    link.stop(record.job_id, force=True)
    link.ask(DeleteJob(CALLER, record.job_id))


def test_the_commands(agent: Agent) -> None:
    job = agent.start_job("sh", "-c", "trap 'echo hup; exit 6' HUP; echo up; while :; do sleep 0.01; done")
    assert agent.cli("stream", job, "--tail", "0").returncode == 0
    while agent.cli("stream", job).stdout != b"up\n":
        pass
    assert agent.cli("delete", job).returncode == 1
    bogus = agent.cli("signal", job, "BOGUS")
    assert (bogus.returncode, b"'BOGUS' is not a signal's name" in bogus.stderr) == (2, True)
    assert agent.cli("signal", job, "HUP", role="reader").returncode == 4
    sent = agent.cli("signal", job[:9], "SIGHUP", "--format", "json")
    assert json.loads(sent.stdout)["id"] == job
    assert agent.cli("wait", job).returncode == 6
    ended = agent.cli("signal", job, "HUP")
    assert (ended.returncode, b"already ended (EXITED)" in ended.stderr) == (1, True)
    other = agent.start_job("sleep", "1000")
    both = agent.cli("delete", other, job)
    assert (both.returncode, both.stdout) == (1, f"{job}  REMOVED\n".encode())
    assert f"worker-client stop {other}".encode() in both.stderr
    assert job not in agent.cli("list").stdout.decode()
    assert agent.cli("query", job).returncode == 1
    agent.cli("stop", other, "--force", check=True)

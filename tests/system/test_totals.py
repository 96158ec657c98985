"""What the supervisor counts survives everyone who counts it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from jobworker.errors import StartFailed, UpgradeRefused
from jobworker.jobs import EndReason
from jobworker.wire import messages
from jobworker.wire.measures import Life, Totals
from support.leftovers import cgroups
from support.link import Link
from support.root_side import RootSide, fresh_root_side
from support.waiting import until


@pytest.fixture
def side() -> Iterator[RootSide]:
    with fresh_root_side() as running:
        yield running


def totals(link: Link) -> Totals:
    measured: Totals = link.ask(messages.Measure()).totals
    return measured


def life(link: Link) -> Life:
    measured: Life = link.ask(messages.Measure()).life
    return measured


def ended(link: Link) -> dict[EndReason, int]:
    return {each.reason: each.jobs for each in totals(link).ended}


def test_each_start_and_end_is_counted(side: RootSide) -> None:
    link = side.link(subscribe=True)
    link.wait_ended(link.start("/bin/echo", "hello").job_id)
    link.wait_ended(link.start("/bin/sh", "-c", "kill -9 $$").job_id)
    stopped = link.start("/bin/sleep", "1000")
    link.stop(stopped.job_id, force=True)
    link.wait_ended(link.start("/bin/sleep", "1000", timeout_ms=1).job_id)
    with pytest.raises(StartFailed):
        link.start("/no/such/program")
    assert ended(link) == {
        EndReason.EXITED: 1,
        EndReason.SIGNALED: 1,
        EndReason.STOPPED: 1,
        EndReason.TIMED_OUT: 1,
    }
    counted = totals(link)
    assert (counted.started, counted.start_failures, counted.log_bytes) == (4, 1, len("hello\n"))
    assert sum(counted.starting.counts) == sum(counted.running.counts) == 4
    assert 0 < counted.starting.seconds < counted.running.seconds + 60


def test_a_running_jobs_output_is_counted_as_it_comes(side: RootSide) -> None:
    link = side.link(subscribe=True)
    job = link.start("/bin/sh", "-c", "echo first; echo second")
    link.wait_ended(job.job_id)
    running = link.start("/bin/sh", "-c", "echo third; exec sleep 1000")
    link.wait_output(running.job_id)
    until(lambda: totals(link).log_bytes, len("first\nsecond\nthird\n"))
    link = side.kill_supervisor(link)
    assert totals(link).log_bytes == len("first\nsecond\nthird\n")
    link.stop(running.job_id, force=True)
    assert totals(link).log_bytes == len("first\nsecond\nthird\n")


def test_totals_survive_kills_restarts_and_upgrades(side: RootSide) -> None:
    link = side.link(subscribe=True)
    for number in range(3):
        link.wait_ended(link.start("/bin/true").job_id)
        link = side.kill_supervisor(link)
        assert (totals(link).started, totals(link).lives) == (number + 1, number + 2)
    link.ask(messages.Upgrade())
    link.drain()
    link = side.reconnect(subscribe=True)
    assert (totals(link).started, totals(link).lives, totals(link).upgrades) == (3, 4, 1)
    link.wait_ended(link.start("/bin/true").job_id)
    side.restart()
    link = side.link(subscribe=True)
    assert (totals(link).started, ended(link), totals(link).lives) == (4, {EndReason.EXITED: 4}, 5)
    assert sum(totals(link).starting.counts) == 4


def test_whoever_was_told_of_a_start_finds_it_counted(side: RootSide) -> None:
    link = side.link(subscribe=True)
    for number in range(5):
        link.start("/bin/sleep", "1000")
        link = side.kill_supervisor(link)
        assert totals(link).started == number + 1


def test_a_refused_upgrade_counts_as_none(side: RootSide) -> None:
    link = side.link()
    with open(os.path.join(side.state_dir, "format"), "w") as file:
        file.write("1000")
    with pytest.raises(UpgradeRefused):
        link.ask(messages.Upgrade())
    assert (totals(link).lives, totals(link).upgrades) == (1, 0)
    os.unlink(os.path.join(side.state_dir, "format"))


@pytest.mark.parametrize("content", ["", "{", '{"started": "many"}', '{"started": 3, "of_later": 1}', "\0" * 300])
def test_totals_that_cannot_be_read_begin_anew(side: RootSide, content: str) -> None:
    link = side.link(subscribe=True)
    link.wait_ended(link.start("/bin/true").job_id)
    side.close()
    with open(os.path.join(side.state_dir, "totals.json"), "w") as file:
        file.write(content)
    side.start_again()
    link = side.link(subscribe=True)
    assert (totals(link).started, totals(link).lives) == (0, 1)
    assert ("totals can't be read" in side.log()) == bool(content)


@pytest.mark.root
def test_a_cgroup_that_cannot_be_removed_is_counted(side: RootSide) -> None:
    link = side.link(subscribe=True)
    job = link.start("/bin/sleep", "1000")
    memory = [path for path in cgroups(job.job_id) if "/memory/" in path]
    if not memory:
        pytest.skip("cgroup v2: a process that somebody puts there is the job's own")
    pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
    try:
        with open(os.path.join(memory[0], "tasks"), "w") as file:
            file.write(str(pid))
        link.stop(job.job_id, force=True)
        assert totals(link).cgroups_left == 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    # Swept at the next start.
    link = side.kill_supervisor(link)
    until(lambda: cgroups(job.job_id), [])
    assert totals(link).cgroups_left == 1


def test_a_supervisors_own_life_is_told(side: RootSide) -> None:
    link = side.link(subscribe=True)
    job = link.start("/bin/sleep", "1000")
    link = side.kill_supervisor(link)
    until(lambda: life(link).whole_seconds > 0, True)
    told = life(link)
    assert 0 < told.serving_seconds <= told.whole_seconds
    assert sum(told.rounds.counts) > 0
    link.stop(job.job_id, force=True)

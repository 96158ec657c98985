"""An ordinary user without delegated cgroups: what still holds, and what is refused."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker.errors import LimitUnsupported, MainProcessEnded
from jobworker.jobs import EndReason, State
from jobworker.limits import Enforcement, Limits
from jobworker.wire.messages import SignalJob
from support.link import CALLER, Link
from support.root_side import RootSide, fresh_root_side, root_side
from support.waiting import until

pytestmark = pytest.mark.root

NOBODY = 65534


@pytest.fixture(scope="module")
def light() -> Iterator[RootSide]:
    with (
        tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory,
        root_side(directory, as_user=NOBODY) as side,
    ):
        yield side


@pytest.fixture
def link(light: RootSide) -> Iterator[Link]:
    connection = light.link(subscribe=True)
    yield connection
    connection.close()


def descendants(pid: int) -> list[int]:
    """A process's children, and theirs."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = [int(text) for text in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        # It ended while its parent's list was being read.
        return []
    return [*children, *(below for child in children for below in descendants(child))]


def test_it_says_what_cannot_be_enforced(link: Link) -> None:
    host = link.welcome.host
    assert (host.cgroup_mode, host.user_per_job) == ("none", False)
    assert {limit.enforcement for limit in host.limits} == {Enforcement.UNSUPPORTED}
    assert all("Delegate=yes" in limit.detail for limit in host.limits)


@pytest.mark.parametrize("limits", [Limits(cpu_millis=500), Limits(memory_bytes=64 << 20), Limits(pids=10)])
def test_a_limit_that_was_asked_for_refuses_the_start(link: Link, light: RootSide, limits: Limits) -> None:
    before = os.listdir(os.path.join(light.state_dir, "jobs"))
    with pytest.raises(LimitUnsupported, match="cannot be enforced on this host"):
        link.start("/bin/true", limits=limits)
    assert os.listdir(os.path.join(light.state_dir, "jobs")) == before


def test_best_effort_starts_it_and_says_so(link: Link) -> None:
    record = link.start("/bin/true", limits=Limits(cpu_millis=500), best_effort=True)
    told = {limit.name: (limit.requested, limit.value, limit.enforcement) for limit in record.limits}
    assert told["cpu"] == ("50%", "", Enforcement.UNSUPPORTED)


def test_exit_code_signal_and_output(link: Link) -> None:
    ended = link.wait_ended(link.start("/bin/sh", "-c", "echo hi; exit 3").job_id)
    assert (ended.end_reason, ended.exit_code, ended.uid) == (EndReason.EXITED, 3, NOBODY)
    assert link.read_log(ended) == b"hi\n"
    ended = link.wait_ended(link.start("/bin/sh", "-c", "kill -SEGV $$").job_id)
    assert (ended.end_reason, ended.signal) == (EndReason.SIGNALED, signal.SIGSEGV)


def test_what_is_killed_has_no_exit_code(link: Link) -> None:
    ended = link.wait_ended(link.start("/bin/sh", "-c", "kill -KILL $$").job_id)
    assert (ended.end_reason, ended.signal, ended.exit_code) == (EndReason.SIGNALED, signal.SIGKILL, None)
    ended = link.stop(link.start("/bin/sleep", "1000").job_id, force=True)
    assert (ended.end_reason, ended.signal, ended.exit_code) == (EndReason.STOPPED, signal.SIGKILL, None)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_a_signal_is_for_the_command(link: Link, light: RootSide, signum: int) -> None:
    def send() -> None:
        link.ask(SignalJob(CALLER, record.job_id, signum, everyone=False))

    # What it leaves behind holds the job open, and is no command.
    script = "trap 'exit 5' TERM USR1; setsid sleep 1000 & echo up; while :; do sleep 0.01; done"
    record = link.start("/bin/sh", "-c", script)
    link.wait_output(record.job_id)
    send()
    until(lambda: os.path.exists(f"/proc/{record.pid}"), False)
    with pytest.raises(MainProcessEnded):
        send()
    assert link.inspect(record.job_id).state is State.RUNNING
    ended = link.stop(record.job_id, force=True)
    assert (ended.exit_code, ended.signal) == ((None, signum) if signum == signal.SIGKILL else (5, None))
    assert descendants(light.supervisor_pid()) == []


def test_what_the_service_manager_has_raised_does_not_keep_jobs_from_starting(link: Link) -> None:
    # Where root has CAP_SYS_RESOURCE, what it sets is the least that this user may set (proc(5), oom_score_adj).
    ended = link.wait_ended(link.start("/bin/cat", "/proc/self/oom_score_adj").job_id)
    assert ended.exit_code == 0
    assert link.read_log(ended) in (b"0\n", b"300\n")


def test_the_pid_is_the_command_s(link: Link) -> None:
    record = link.start("/bin/sleep", "1000")
    with open(f"/proc/{record.pid}/cmdline", "rb") as file:
        assert file.read() == b"/bin/sleep\x001000\0"
    link.stop(record.job_id, force=True)


def test_stop_takes_the_whole_tree(link: Link, light: RootSide) -> None:
    stubborn = "trap '' TERM; sleep 1000; sleep 1000"
    script = f'(setsid sh -c "{stubborn}" & ) ; (setsid setsid sh -c "{stubborn}" &) ; echo up; {stubborn}'
    record = link.start("/bin/sh", "-c", script)
    link.wait_output(record.job_id)
    supervisor = light.supervisor_pid()
    until(lambda: len(descendants(supervisor)) >= 4, True)
    ended = link.stop(record.job_id, grace_ms=100)
    assert (ended.state, ended.end_reason) == (State.ENDED, EndReason.STOPPED)
    assert descendants(supervisor) == []


def test_a_job_outlives_the_supervisor(link: Link, light: RootSide) -> None:
    record = link.start("/bin/sh", "-c", "(setsid sleep 1000 &); echo up; read x; sleep 1000; exit 9")
    link.wait_output(record.job_id)
    os.kill(light.supervisor_pid(), signal.SIGKILL)
    link.drain()
    again = light.reconnect(subscribe=True)
    assert again.inspect(record.job_id).state is State.RUNNING
    assert again.stop(record.job_id, grace_ms=100).end_reason is EndReason.STOPPED
    assert descendants(light.supervisor_pid()) == []


def test_an_exit_code_outlives_the_keeper() -> None:
    with fresh_root_side(as_user=NOBODY) as side:
        link = side.link(subscribe=True)
        record = link.start("/bin/sh", "-c", "while [ ! -e go ]; do sleep 0.02; done; exit 7")
        side.kill_keeper()
        link.drain()
        link.close()
        link = side.reconnect(subscribe=True)
        Path(side.state_dir, "jobs", record.job_id, "work", "go").touch()
        ended = link.wait_ended(record.job_id)
        assert (ended.end_reason, ended.exit_code) == (EndReason.EXITED, 7)

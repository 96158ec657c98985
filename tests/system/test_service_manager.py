"""Under a service manager that stores descriptors, the death of all of the root side costs no byte."""

from __future__ import annotations

import hashlib
import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker.errors import StdinEnded
from jobworker.jobs import EndReason, JobRecord, new_job_id
from jobworker.keeper import parking
from jobworker.wire import messages
from support.leftovers import cgroups
from support.link import DEADLINE, Link
from support.root_side import RootSide, tells_ends
from support.service_manager import ServiceManager

pytestmark = pytest.mark.root


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(str(tmp_path / "notify"))
    yield manager
    manager.close()


@pytest.fixture
def side(tmp_path: Path, manager: ServiceManager) -> Iterator[RootSide]:
    side = RootSide(str(tmp_path), manager=manager)
    yield side
    side.close()


def die(side: RootSide, *, both: bool) -> None:
    """Kill the keeper, and with `both` the supervisor before it can leave by itself."""
    fd = os.pidfd_open(side.supervisor_pid())
    if both:
        side.freeze_keeper()
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    side.keeper.kill()
    side.keeper.wait(DEADLINE)
    assert select.select([fd], [], [], DEADLINE)[0], "the supervisor stays"
    os.close(fd)


def start_again(side: RootSide) -> Link:
    side.start_again()
    return side.link(subscribe=True)


def wait_until_stored(manager: ServiceManager, jobs: int) -> None:
    manager.wait_for(lambda manager: len(manager.stored) == 3 * jobs)


@pytest.mark.parametrize("both", [False, True])
def test_no_byte_is_lost(side: RootSide, manager: ServiceManager, *, both: bool) -> None:
    link = side.link(subscribe=True)
    script = "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.005; done; exit 5"
    before = [link.start("/bin/sh", "-c", script) for _ in range(10)]
    for record in before:
        link.wait_output(record.job_id)
    wait_until_stored(manager, 10)
    for _ in range(3):
        die(side, both=both)
        link = start_again(side)
    for record in before:
        ended = link.wait_ended(record.job_id)
        assert link.read_log(ended) == "".join(f"{i}\n" for i in range(300)).encode()
        check_end(ended, EndReason.EXITED, exit_code=5)
        assert cgroups(record.job_id) == []


def check_end(ended: JobRecord, reason: EndReason, **fields: int) -> None:
    """How the job ended is known exactly, or said to be unknown."""
    if tells_ends():
        known = {"exit_code": ended.exit_code, "signal": ended.signal}
        assert (ended.end_reason, known | fields) == (reason, known)
    else:
        assert (ended.end_reason, ended.exit_code, ended.signal) == (EndReason.LOST, None, None)
        assert "6.15" in ended.detail


def test_jobs_that_end_while_nobody_is_there(side: RootSide, manager: ServiceManager) -> None:
    link = side.link(subscribe=True)
    wait = "trap go=1 USR1; echo up; until [ $go ]; do sleep 0.02; done 2>&-; echo the last words"
    exiting, killed = (link.start("/bin/sh", "-c", f"{wait}; {end}") for end in ("exit 7", "kill -9 $$"))
    for record in (exiting, killed):
        link.wait_output(record.job_id)
    fds = [os.pidfd_open(record.pid) for record in (exiting, killed)]
    wait_until_stored(manager, 2)
    die(side, both=True)
    for fd in fds:
        signal.pidfd_send_signal(fd, signal.SIGUSR1)
        assert select.select([fd], [], [], DEADLINE)[0]
        os.close(fd)
    link = start_again(side)
    ended = link.wait_ended(exiting.job_id)
    assert link.read_log(ended) == b"up\nthe last words\n"
    check_end(ended, EndReason.EXITED, exit_code=7)
    ended = link.wait_ended(killed.job_id)
    assert link.read_log(ended) == b"up\nthe last words\n"
    check_end(ended, EndReason.SIGNALED, signal=signal.SIGKILL)


def test_an_open_standard_input_has_no_end(side: RootSide, manager: ServiceManager) -> None:
    link = side.link(subscribe=True)
    script = "mkfifo go; read go < go; sha256sum"
    running = link.start("/bin/sh", "-c", script, stdin_open=True)
    side.wait_for(lambda: os.path.exists(os.path.join(running.workdir, "go")))
    # More than a pipe holds: the rest is nowhere but in the file behind it.
    data = os.urandom(100_000)
    link.feed(running.job_id, data)
    manager.wait_for(lambda manager: len(manager.stored) == 5)
    for _ in range(2):
        die(side, both=True)
        link = start_again(side)
        now = link.inspect(running.job_id)
        assert (now.stdin_open, now.stdin_bytes) == (True, len(data))
    Path(running.workdir, "go").write_text("go\n")
    link.feed(running.job_id, b"the end", offset=len(data), end=True)
    # The store's copy is the last one, and this process is the service manager.
    manager.wait_for(lambda manager: len(manager.stored) == 3)
    ended = link.wait_ended(running.job_id)
    assert link.read_log(ended) == f"{hashlib.sha256(data + b'the end').hexdigest()}  -\n".encode()
    manager.wait_for(lambda manager: not manager.stored)


def test_an_input_that_nobody_held_is_not_taken_for_open(side: RootSide, manager: ServiceManager) -> None:
    link = side.link(subscribe=True)
    running = link.start("/bin/sh", "-c", "cat; sleep 1000", stdin_open=True)
    manager.wait_for(lambda manager: len(manager.stored) == 5)
    for kind in (parking.STDIN_PIPE, parking.STDIN_FILE):
        # As if there had been no room.
        os.close(manager.stored.pop(parking.name_of(running.job_id, kind)))
    die(side, both=True)
    link = start_again(side)
    assert not link.inspect(running.job_id).stdin_open
    assert "standard input was cut off" in side.log()
    with pytest.raises(StdinEnded):
        link.write_stdin(running.job_id, b"x")
    assert link.stop(running.job_id, force=True).end_reason is EndReason.STOPPED


@pytest.mark.parametrize("missing", [parking.STDIN_PIPE, parking.STDIN_FILE])
def test_half_of_an_input_does_not_stay_in_the_store(
    side: RootSide, manager: ServiceManager, missing: str
) -> None:
    link = side.link(subscribe=True)
    running = link.start("/bin/cat", stdin_open=True)
    manager.wait_for(lambda manager: len(manager.stored) == 5)
    # As if there had been no room.
    os.close(manager.stored.pop(parking.name_of(running.job_id, missing)))
    die(side, both=True)
    link = start_again(side)
    # That of the service manager would be the last writing end.
    link.wait_ended(running.job_id)
    manager.wait_for(lambda manager: not manager.stored)


def test_a_job_without_a_pipe_does_not_stay_in_the_store(side: RootSide, manager: ServiceManager) -> None:
    link = side.link(subscribe=True)
    lost, kept = (link.start("/bin/sleep", "1000") for _ in range(2))
    wait_until_stored(manager, 2)
    os.close(manager.stored.pop(parking.name_of(lost.job_id, parking.STDERR)))
    die(side, both=True)
    link = start_again(side)
    assert link.inspect(lost.job_id).end_reason is EndReason.LOST
    assert link.inspect(kept.job_id).pid == kept.pid
    wait_until_stored(manager, 1)


def test_nothing_stays_in_the_store(side: RootSide, manager: ServiceManager) -> None:
    link = side.link(subscribe=True)
    records = [link.start("/bin/echo", "x") for _ in range(20)]
    running = link.start("/bin/sleep", "1000")
    for record in records:
        link.wait_ended(record.job_id)
    side.close()
    manager.wait_for(lambda manager: not manager.stored and manager.said == ["READY=1", "STOPPING=1"])
    assert running.job_id


def test_an_upgrade_keeps_the_store(side: RootSide, manager: ServiceManager) -> None:
    link = side.link(subscribe=True)
    running = link.start("/bin/sh", "-c", "read line < /proc/self/fd/0; sleep 1000")
    link.ask(messages.Upgrade())
    link.drain()
    side.reconnect().close()
    wait_until_stored(manager, 1)
    die(side, both=True)
    link = start_again(side)
    assert link.inspect(running.job_id).pid == running.pid
    assert link.stop(running.job_id).end_reason is EndReason.STOPPED


def test_a_restart_leaves_the_jobs_to_the_next_keeper(side: RootSide, manager: ServiceManager) -> None:
    link = side.link(subscribe=True)
    script = "i=0; while [ $i -lt 100 ]; do echo $i; i=$((i+1)); sleep 0.01; done; sleep 1000"
    running = link.start("/bin/sh", "-c", script)
    wait_until_stored(manager, 1)
    side.keeper.send_signal(signal.SIGUSR1)
    assert side.keeper.wait(DEADLINE) == 0
    manager.wait_for(lambda manager: manager.said == ["READY=1", "STOPPING=1"])
    link = start_again(side)
    assert link.inspect(running.job_id).pid == running.pid
    link.wait_output(running.job_id)
    assert link.stop(running.job_id, force=True).end_reason is EndReason.STOPPED
    log = link.read_log(link.inspect(running.job_id))
    assert b"".join(b"%d\n" % i for i in range(100)).startswith(log)


def test_what_jobs_are_below_stays_for_the_next_keeper(side: RootSide) -> None:
    link = side.link(subscribe=True)
    instance = Path(side.state_dir, "instance").read_text()
    below = cgroups(instance)
    assert below
    # With no job left in there it could be removed, under the next supervisor's hands.
    link.wait_ended(link.start("/bin/true").job_id)
    side.keeper.send_signal(signal.SIGUSR1)
    assert side.keeper.wait(DEADLINE) == 0
    assert cgroups(instance) == below
    link = start_again(side)
    assert link.wait_ended(link.start("/bin/true").job_id).exit_code == 0
    assert side.close() == 0
    assert cgroups(instance) == []


def test_the_names_of_as_many_as_are_stored_fit_into_one_variable() -> None:
    unit = Path(__file__).parents[2] / "systemd/jobworker-keeper.service"
    (most,) = re.findall(r"^FileDescriptorStoreMax=(\d+)$", unit.read_text(), re.MULTILINE)
    job_id = new_job_id()
    name = parking.name_of(job_id, parking.STDOUT)
    assert parking.job_id_of(name) == job_id
    # The kernel refuses to execute anything with a longer one.
    subprocess.run(["/bin/true"], env={"LISTEN_FDNAMES": ":".join([name] * int(most))}, check=True)

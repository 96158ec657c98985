"""The keeper through the deaths of supervisors that do what no good one does, at the worst of instants."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bare_keeper import DEADLINE, JOB, BareKeeper, bare_keeper
from support.service_manager import ServiceManager
from support.strace import attached, needs_strace
from support.waiting import until, wait_for_end

# More messages than a service manager's socket has room for.
_ROOM = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 5


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(str(tmp_path / "notify"))
    yield manager
    manager.close()


# It leaves the answer unread, and says the rest while the keeper can't read.
_UNREAD = f"""
if lives == 0:
    say(keeping.HAND_BACK)
    select.select([link], [], [])
    tell("asked")
    wait_for("go")
    say(keeping.HOLD_PIPES, {JOB!r}, os.pipe())
    sys.exit(1)
tell("held", [job_id for job_id, _ in take_back()])
"""


def test_what_a_supervisor_said_before_it_died_counts_whatever_it_had_not_read(tmp_path: Path) -> None:
    with bare_keeper(tmp_path, _UNREAD) as keeper:
        keeper.wait_for("asked")
        keeper.freeze()
        keeper.let("go")
        wait_for_end(*keeper.supervisors())
        keeper.thaw()
        assert keeper.process.wait(DEADLINE) == 0, keeper.log()
        assert keeper.wait_for("held") == f"['{JOB}']"


# It crashes while it serves; the next one ends as it is told to.
_CRASH = f"""
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
say(keeping.READY)
if lives == 0:
    say(keeping.HOLD_PIPES, {JOB!r}, os.pipe())
    tell("serving")
    wait_for("go")
    if os.fork():
        os._exit(1)
    # Like a job's process that has not come to its command: the link has no end by itself.
    wait_for("life1")
    os._exit(0)
tell("told", signal.sigwait([signal.SIGTERM]))
"""


@needs_strace
def test_told_to_end_while_it_buries_a_supervisor_it_ends(tmp_path: Path) -> None:
    with bare_keeper(tmp_path, _CRASH) as keeper:
        keeper.wait_for("serving")
        # Nothing else calls that: the supervisor is reaped, and what it has said is about to be read.
        call = ("-e", "trace=shutdown", "-e", "inject=shutdown:signal=TERM")
        with attached(keeper.process.pid, "-o", "/dev/null", *call):
            keeper.let("go")
            assert keeper.process.wait(DEADLINE) == 0, keeper.log()
        assert keeper.wait_for("told") == str(int(signal.SIGTERM))


# It crashes while a job leaves processes to the keeper faster than that reaps them.
_FLOOD = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
say(keeping.READY)
if lives == 0:
    tell("serving")
    wait_for("go")
    if os.fork() == 0:
        for number in range(20_000):
            if number == 1_000:
                tell("flooding")
            if os.path.exists("life1"):
                break
            if (child := os.fork()) == 0:
                os.fork()
                os._exit(0)
            os.waitpid(child, 0)
        os._exit(0)
    wait_for("flooding")
    os._exit(1)
signal.sigwait([signal.SIGTERM])
"""


@needs_strace
def test_however_many_processes_end_a_supervisor_is_started_again(tmp_path: Path) -> None:
    with bare_keeper(tmp_path, _FLOOD) as keeper:
        keeper.wait_for("serving")
        slow = ("-e", "trace=waitid", "-e", "inject=waitid:delay_exit=2000")
        with attached(keeper.process.pid, "-o", "/dev/null", *slow):
            keeper.let("go")
            keeper.wait_for("life1")
        keeper.process.send_signal(signal.SIGTERM)
        assert keeper.process.wait(DEADLINE) == 0, keeper.log()


_STORING = f"""
for number in range({_ROOM}):
    say(keeping.HOLD_PIPES, "%019d" % number, os.pipe())
say(keeping.READY)
tell("serving")
wait_for("go")
"""


def test_told_to_end_while_it_says_its_last_words_it_ends_well(tmp_path: Path, manager: ServiceManager) -> None:
    with bare_keeper(tmp_path, _STORING, manager) as keeper:
        with manager.busy():
            keeper.wait_for("serving")
            keeper.let("go")
            (supervisor,) = keeper.supervisors()
            until(Path(f"/proc/{supervisor}").exists, False, DEADLINE)
            keeper.process.send_signal(signal.SIGTERM)
            assert keeper.process.wait(DEADLINE) == 0, keeper.log()
        assert keeper.log() == ""


_SERVING = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
say(keeping.READY)
tell("serving")
signal.sigwait([signal.SIGTERM])
"""


# One life long it counts what it is told.
_TOLD = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
wait_for("go")
say(keeping.READY)
tell("serving")
told = set()
while signal.SIGTERM not in told:
    told.add(signal.sigwait([signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2]))
    tell("told%d" % len(told), sorted(map(int, told)))
"""


def test_what_the_supervisor_heeds_is_passed_on_however_often(tmp_path: Path, manager: ServiceManager) -> None:
    with bare_keeper(tmp_path, _TOLD, manager) as keeper:
        keeper.wait_for("life0")
        # Nobody is ready for it yet.
        keeper.process.send_signal(signal.SIGHUP)
        keeper.let("go")
        manager.wait_for(lambda manager: manager.said == ["READY=1"])
        for _ in range(1000):
            keeper.process.send_signal(signal.SIGHUP)
        keeper.wait_for("told1")
        keeper.process.send_signal(signal.SIGUSR2)
        keeper.wait_for("told2")
        keeper.process.send_signal(signal.SIGTERM)
        assert keeper.process.wait(DEADLINE) == 0, keeper.log()
        told = [int(signal.SIGHUP), int(signal.SIGUSR2), int(signal.SIGTERM)]
        assert keeper.wait_for("told3") == str(sorted(told))


def test_without_a_descriptor_to_say_so_it_ends_as_it_is_told(tmp_path: Path, manager: ServiceManager) -> None:
    with bare_keeper(tmp_path, _SERVING, manager) as keeper:
        manager.wait_for(lambda manager: manager.said == ["READY=1"])
        resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE, (3, 3))
        keeper.process.send_signal(signal.SIGTERM)
        assert keeper.process.wait(DEADLINE) == 0, keeper.log()


# It has one job made, and later another one.
_MAKING = """
say(keeping.READY)
tell("serving")
for number in (1, 2):
    wait_for("make%d" % number)
    say(keeping.HOLD_PIPES, "%019d" % number, os.pipe())
    take_back()
    tell("made%d" % number)
wait_for("go")
"""


def test_a_service_manager_that_comes_back_is_told_what_it_has_missed(
    tmp_path: Path, manager: ServiceManager
) -> None:
    with bare_keeper(tmp_path, _MAKING, manager) as keeper:
        keeper.wait_for("serving")
        # The first one finds nobody at the socket, the second one a socket that is connected to nobody.
        with manager.away():
            for number in (1, 2):
                keeper.let(f"make{number}")
                keeper.wait_for(f"made{number}")
        manager.wait_for(lambda manager: len(manager.stored) == 4)
        keeper.let("go")
        assert keeper.process.wait(DEADLINE) == 0, keeper.log()


@needs_strace
@pytest.mark.parametrize("error", ["ENOBUFS", "ENOMEM", "ETOOMANYREFS"])
def test_what_cannot_be_stored_is_stored_later(tmp_path: Path, manager: ServiceManager, error: str) -> None:
    with bare_keeper(tmp_path, _MAKING, manager) as keeper:
        manager.wait_for(lambda manager: manager.said == ["READY=1"])
        call = ("-e", "trace=sendmsg", "-e", f"inject=sendmsg:error={error}:when=1..2")
        with attached(keeper.process.pid, "-o", "/dev/null", *call):
            keeper.let("make1")
            manager.wait_for(lambda manager: len(manager.stored) == 2)
        keeper.let("make2")
        keeper.wait_for("made2")
        keeper.let("go")
        assert keeper.process.wait(DEADLINE) == 0, keeper.log()


# It has the keeper try the code that is there, and may crash meanwhile.
_UPGRADING = f"""
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
if lives == 0:
    say(keeping.HOLD_PIPES, {JOB!r}, os.pipe())
    say(keeping.READY)
    say(keeping.UPGRADE)
    wait_for("crash")
    sys.exit(1)
take_back()
say(keeping.READY)
tell("serving")
signal.sigwait([signal.SIGTERM])
"""


def hangs(directory: Path) -> tuple[str, str, str]:
    """A program that hangs while it is tried, and tells as which process."""
    told = str(directory / "trying")
    hang = f"open({told!r} + '.new', 'w').write(str(os.getpid())); os.rename({told!r} + '.new', {told!r}); "
    hang = f"if '--check' in sys.argv: {hang}__import__('time').sleep(1000)\n"
    return "__main__.py", "import sys\n", f"import sys\n{hang}"


def test_new_code_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    with bare_keeper(tmp_path, _UPGRADING, changes=(hangs(tmp_path),)) as keeper:
        trying = os.pidfd_open(int(keeper.wait_for("trying")))
        keeper.let("crash")
        keeper.wait_for("serving")
        keeper.process.send_signal(signal.SIGTERM)
        assert keeper.process.wait(DEADLINE) == 0, keeper.log()
        assert select.select([trying], [], [], DEADLINE)[0]
        os.close(trying)


def test_new_code_that_hangs_is_given_up(tmp_path: Path) -> None:
    changes = (hangs(tmp_path), ("upgrade.py", "PATIENCE = 100.0", "PATIENCE = 1.0"))
    with bare_keeper(tmp_path, _UPGRADING, changes=changes) as keeper:
        said = "keeper: cannot be upgraded: the new code has not proven itself within 1 s\n"
        until(keeper.log, said, DEADLINE)
        keeper.let("crash")
        keeper.wait_for("serving")
        keeper.process.send_signal(signal.SIGTERM)
        assert keeper.process.wait(DEADLINE) == 0, keeper.log()


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that can be taken away, so that nothing can be started."""
    link = tmp_path / "python"
    link.symlink_to(os.path.realpath(sys.executable))
    return link


def crash_without(python: Path, keeper: BareKeeper) -> None:
    keeper.wait_for("serving")
    python.rename(f"{python}.gone")
    keeper.let("go")
    until(lambda: "keeper: cannot start a supervisor: " in keeper.log(), True, DEADLINE)


def test_told_to_leave_while_it_can_start_no_supervisor_it_leaves(
    tmp_path: Path, manager: ServiceManager, python: Path
) -> None:
    with bare_keeper(tmp_path, _CRASH, manager, str(python)) as keeper:
        crash_without(python, keeper)
        keeper.process.send_signal(signal.SIGUSR1)
        assert keeper.process.wait(DEADLINE) == 0, keeper.log()
        keeper.let("life1")
        manager.wait_for(lambda manager: manager.said == ["READY=1", "STOPPING=1"])
        assert len(manager.stored) == 2


def test_told_to_end_while_it_can_start_no_supervisor_it_has_the_next_one_end_the_jobs(
    tmp_path: Path, python: Path
) -> None:
    with bare_keeper(tmp_path, _CRASH, python=str(python)) as keeper:
        crash_without(python, keeper)
        keeper.process.send_signal(signal.SIGTERM)
        said = "keeper: cannot start a supervisor, and only that can end the jobs: "
        until(lambda: said in keeper.log(), True, DEADLINE)
        Path(f"{python}.gone").rename(python)
        assert keeper.process.wait(DEADLINE) == 0, keeper.log()
        assert keeper.wait_for("told") == str(int(signal.SIGTERM))
        assert keeper.log().count("\n") == 2

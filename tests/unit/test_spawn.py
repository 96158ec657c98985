"""What a process tells of its way to the command, and the kernel of whether it came there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from jobworker.errors import ProtocolError
from jobworker.kernel import spawn
from jobworker.kernel.confinement import Confinement
from jobworker.kernel.spawn import Report, has_executed, read_report
from jobworker.kernel.subtree import SubtreeGroup
from support import seccomp
from support.scarce import MOST, room_for

_PIDFD_OPEN, _CLONE3 = 434, 435
STARTED, REFUSED, WRONG = range(3)


@pytest.mark.parametrize(
    ("said", "report"),
    [
        (b"", Report(0, "", None)),
        (b"step keeper\n", Report(0, "keeper", None)),
        (b"step keeper\nerrno 32\n", Report(0, "keeper", 32)),
        (b"step cgroup\npid 7\nstep session\nstep exec\n", Report(7, "exec", None)),
        (b"step cgroup\npid 7\nstep system calls\nerrno 22\n", Report(7, "system calls", 22)),
    ],
)
def test_a_report(said: bytes, report: Report) -> None:
    assert read_report(said) == report


@pytest.mark.parametrize("said", [b"step", b"pid x\n", b"\xff \n"])
def test_what_is_none(said: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_report(said)


@pytest.mark.parametrize("program", ["/bin/true", "/no/such/program"])
def test_whether_a_child_has_executed_something_is_known_until_it_is_waited_for(program: str) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.execv(program, [program])
        finally:
            os._exit(1)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    try:
        assert has_executed(child) is (program == "/bin/true")
    finally:
        os.waitpid(child, 0)


def start(announced: Path, *, without: int, spare: int) -> int:
    """Start a process in an agent that lacks clone3 and another system call, and wait for its end.

    Args:
        announced: what the new process makes before it executes anything.
        without: the number of that call.
        spare: how many descriptors may be opened.

    Returns:
        `STARTED`; or `REFUSED` if there is no process; anything else is wrong.
    """
    agent = os.fork()
    if agent:
        return os.waitstatus_to_exitcode(os.waitpid(agent, 0)[1])
    try:
        signal.alarm(60)
        for number in (_CLONE3, without):
            seccomp.take_away(number)
        null, root = os.open("/dev/null", os.O_RDWR), os.open("/", os.O_PATH)
        confinement = Confinement(frozenset(), "/", (), ())
        command = spawn.Command((b"/bin/true",), (b"true",), {}, root, confinement, "", None, (64, 64))
        group, pipes = SubtreeGroup("job"), spawn.Pipes(null, null, null, null)
        with room_for(spare):
            try:
                pid, pidfd = spawn.start(command, pipes, group, lambda _: announced.mkdir())
            except OSError:
                with pytest.raises(ChildProcessError):
                    os.waitpid(-1, os.WNOHANG)
                os._exit(REFUSED)
            group.init_is(pid, pidfd)
        if os.waitpid(pid, 0)[1] == 0:
            os._exit(STARTED)
    finally:
        os._exit(WRONG)


@pytest.mark.parametrize(
    ("without", "spare", "outcome"),
    [(_CLONE3, 0, REFUSED), (_CLONE3, 1, REFUSED), (_CLONE3, 2, STARTED), (_PIDFD_OPEN, MOST, REFUSED)],
)
def test_without_clone3_there_is_no_process_that_nobody_could_watch(
    tmp_path: Path, without: int, spare: int, outcome: int
) -> None:
    announced = tmp_path / "announced"
    assert start(announced, without=without, spare=spare) == outcome
    assert announced.exists() is (outcome == STARTED)

"""What a process tells of its way to the command, and the kernel of whether it came there."""

from __future__ import annotations

import os

import pytest

from jobworker.errors import ProtocolError
from jobworker.kernel.spawn import Report, has_executed, read_report


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

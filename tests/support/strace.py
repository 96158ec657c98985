"""strace(1) on a running process: which system calls it makes, and what happens when one of them goes wrong."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

_CALL = re.compile(r"^(\w+)\(", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Call:
    """The n-th call by this name since strace was attached, counted from 1."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name}#{self.number}"


@contextlib.contextmanager
def attached(pid: int, *arguments: str) -> Iterator[None]:
    """Trace a process without the children that it makes meanwhile, which would be jobs."""
    command = ["strace", "-p", str(pid), *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as strace:
        try:
            assert strace.stderr
            said = strace.stderr.readline()
            assert b"attached" in said, said
            yield
        finally:
            strace.terminate()
            strace.communicate()


def without_processes(pid: int) -> contextlib.AbstractContextManager[Callable[[], int]]:
    """Meanwhile this process can make no other (fork(2), EAGAIN); tells how often it has tried."""
    return _refusing(pid, "clone,clone3", "EAGAIN")


def without_programs(pid: int) -> contextlib.AbstractContextManager[Callable[[], int]]:
    """Meanwhile this process can execute no other program (execve(2), ENOMEM); tells how often it has tried."""
    return _refusing(pid, "execve", "ENOMEM")


@contextlib.contextmanager
def _refusing(pid: int, calls: str, error: str) -> Iterator[Callable[[], int]]:
    with tempfile.NamedTemporaryFile(mode="r", prefix="jobworker-strace-") as file:

        def tries() -> int:
            return Path(file.name).read_text().count("(INJECTED)")

        with attached(pid, "-o", file.name, "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}"):
            yield tries


class Recorder:
    """What a process has called, once `recording` is over."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    @contextlib.contextmanager
    def recording(self, pid: int) -> Iterator[None]:
        with tempfile.NamedTemporaryFile(mode="r", prefix="jobworker-strace-") as file:
            with attached(pid, "-o", file.name):
                yield
            counts: dict[str, int] = {}
            for name in _CALL.findall(file.read()):
                counts[name] = counts.get(name, 0) + 1
                self.calls.append(Call(name, counts[name]))


def killing(call: Call) -> tuple[str, ...]:
    """SIGKILL on entry to the call, which is not made any more (ptrace(2), syscall-enter-stop)."""
    return _inject(call, "signal=KILL")


def failing(call: Call, error: str) -> tuple[str, ...]:
    """The call is not made, and returns this error."""
    return _inject(call, f"error={error}")


def failing_to_open(path: str, number: int, error: str) -> tuple[str, ...]:
    """The n-th opening of what is called by this path is not done, and has this error."""
    return ("-o", "/dev/null", "-P", path, *_inject(Call("openat", number), f"error={error}")[2:])


def _inject(call: Call, what: str) -> tuple[str, ...]:
    return ("-o", "/dev/null", "-e", f"trace={call.name}", "-e", f"inject={call.name}:{what}:when={call.number}")

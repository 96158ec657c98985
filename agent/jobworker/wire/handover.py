"""What the keeper holds, and how it is carried over into a keeper's program that is executed in place.

The keeper itself does that for an upgrade, and the supervisor when the keeper has died. The state goes through a
memfd as lines of numbers, the descriptors stay open across execve(2).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from jobworker.wire import keeping

# Raised whenever the lines change; a version that does not know it refuses before it has taken over anything.
FORMAT = 2
# Those of earlier versions that can be read: the first had no standard input.
READABLE = (1, FORMAT)


class Held:
    """What is held of one job; of its standard input, while that is open, the write end and the file behind it."""

    def __init__(self, stdout: int, stderr: int) -> None:
        self.pipes = (stdout, stderr)
        self.stdin: tuple[int, ...] = ()
        self.pidfd = -1
        self.pid = 0
        self.end = keeping.RUNNING

    def outputs(self) -> tuple[int, ...]:
        """The pipes and, once there is a process, its pidfd."""
        return (*self.pipes, self.pidfd) if self.pidfd >= 0 else self.pipes

    def descriptors(self) -> tuple[int, ...]:
        return (*self.outputs(), *self.stdin)

    def close(self) -> None:
        for fd in self.descriptors():
            os.close(fd)


class State:
    """All that a keeper knows: the supervisor's pid, the link to it (0 and -1 for none), what is held by job."""

    def __init__(self, supervisor: int, link_fd: int, held: dict[str, Held]) -> None:
        self.supervisor = supervisor
        self.link_fd = link_fd
        self.held = held

    def descriptors(self) -> tuple[int, ...]:
        link = () if self.link_fd < 0 else (self.link_fd,)
        return (*link, *(fd for held in self.held.values() for fd in held.descriptors()))


def prove(command: Sequence[str]) -> int:
    """Try the program as it is on disk now.

    Returns:
        The pid of a child, which exits with 0 if the program starts and knows this format.

    Raises:
        OSError: it could not be tried.
    """
    return os.posix_spawn(command[0], [*command, "--check", str(FORMAT)], os.environ)


def execute(command: Sequence[str], state: State) -> None:
    """Execute the program in place of this one.

    Raises:
        OSError: it could not be; everything is as it was.
    """
    lines = [f"{FORMAT} {state.supervisor} {state.link_fd}"]
    for job_id, held in state.held.items():
        lines.append(" ".join(map(str, (job_id, *held.pipes, held.pidfd, held.pid, *held.end, *held.stdin))))
    memory = os.memfd_create("keeper", 0)
    try:
        os.write(memory, "\n".join(lines).encode("ascii"))
        os.lseek(memory, 0, os.SEEK_SET)
        _keep_across_exec(state, True)
        os.execv(command[0], [*command, "--resume-fd", str(memory)])
    except OSError:
        _keep_across_exec(state, False)
        os.close(memory)
        raise


def read(fd: int) -> State:
    """Read what `execute` has left, and take the descriptors over."""
    with open(fd, encoding="ascii") as file:
        first, *lines = file.read().splitlines()
    _, supervisor, link_fd = map(int, first.split())
    state = State(supervisor, link_fd, dict(map(_held, lines)))
    _keep_across_exec(state, False)
    return state


def _held(line: str) -> tuple[str, Held]:
    job_id, *numbers = line.split()
    stdout, stderr, pidfd, pid, code, status, *stdin = map(int, numbers)
    held = Held(stdout, stderr)
    held.pidfd, held.pid, held.end, held.stdin = pidfd, pid, (code, status), tuple(stdin)
    return job_id, held


def _keep_across_exec(state: State, keep: bool) -> None:  # noqa: FBT001 - as os.set_inheritable has it
    for fd in state.descriptors():
        os.set_inheritable(fd, keep)

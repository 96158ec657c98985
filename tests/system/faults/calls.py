"""One fault in one system call of the supervisor, and what must be true after it.

An action (a start, an exit with its output, a stop) is recorded once; then it is done again for each of its calls
in turn, with the supervisor killed before the call, or with the call failing as the kernel lets it fail.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from jobworker.errors import HostFault, JobAlreadyEnded, JobWorkerError
from jobworker.jobs import EndReason, Idempotency, JobRecord, JobSpec
from jobworker.wire import messages
from support import strace
from support.leftovers import cgroups, descriptors, processes_of
from support.link import CALLER, Link
from support.root_side import RootSide
from support.strace import Call
from support.waiting import until

_T = TypeVar("_T")
# What is still there then could not be removed.
_REMOVED_SECONDS = 5.0
SEGMENT_BYTES = 65_536
# A rotation and the rest.
OUTPUT = b"0123456789abcdef" * 6_000
EXIT_CODE = 7
_IO = ("EIO", "ENOSPC", "ENOMEM")
_MEMORY = ("ENOMEM",)
# How each call may fail, by its man page. What is not here fails by a bug of the caller alone.
ERRORS: dict[str, tuple[str, ...]] = {
    "openat": ("EMFILE", *_IO),
    "openat2": ("EMFILE", *_IO),
    "mkdirat": _IO,
    "renameat": ("EIO", "ENOSPC", "EROFS"),
    "unlinkat": ("EIO", "EROFS"),
    "fchmodat": ("EIO", "EROFS"),
    "fchownat": ("EIO", "EROFS"),
    "fchown": ("EIO",),
    "newfstatat": ("EIO", "ENOMEM"),
    "getdents64": ("EIO",),
    "read": ("EIO", "EINTR"),
    "pread64": ("EIO", "EINTR"),
    "write": ("EIO", "ENOSPC", "EINTR"),
    "pwrite64": ("EIO", "ENOSPC", "EINTR"),
    "splice": _IO,
    "pipe2": ("EMFILE", "ENFILE"),
    "fcntl": ("EPERM",),
    "clone3": ("ENOMEM", "EAGAIN"),
    "pidfd_open": ("EMFILE", "ENOMEM"),
    "pidfd_send_signal": ("EPERM",),
    "waitid": ("EINTR",),
    "poll": ("EINTR", "ENOMEM"),
    "epoll_wait": ("EINTR",),
    "epoll_ctl": ("ENOMEM", "ENOSPC"),
    "sendmsg": ("EINTR", "ENOMEM"),
    "recvmsg": ("EINTR", "ENOMEM"),
    "mmap": _MEMORY,
    "close": ("EINTR",),
}


class Action(ABC):
    """Something that a client or a job does, and its supervisor with it; once only."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    @abstractmethod
    def act(self, link: Link) -> None:
        """Do it, and see it through.

        Raises:
            ConnectionResetError: the supervisor has died.
            HostFault: it was refused.
        """

    @abstractmethod
    def settle(self, link: Link, *, exactly: bool) -> None:
        """See that it has been done right, or do it again; no job is left afterwards.

        Args:
            link: a subscribed connection to the supervisor that there is now.
            exactly: without the concessions that are made to a disk that fails.
        """


class Start(Action):
    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        spec = JobSpec("/bin/sh", ("-c", f"echo begun; echo so >&2; exit {EXIT_CODE}"))
        key = Idempotency(f"start-{bench.next_number()}", "digest")
        self._request = messages.StartJob(CALLER, spec, key)
        self._there_before = bench.job_directories()
        self._answer: JobRecord | None = None

    def act(self, link: Link) -> None:
        self._answer = link.ask(self._request).record
        assert self._answer
        link.wait_ended(self._answer.job_id)

    def settle(self, link: Link, *, exactly: bool) -> None:
        record = link.ask(self._request).record
        assert self._answer is None or self._answer.job_id == record.job_id
        ended = link.wait_ended(record.job_id)
        assert (ended.end_reason, ended.exit_code) == (EndReason.EXITED, EXIT_CODE), ended
        assert self.bench.job_directories() - self._there_before == {record.job_id}
        check_output(link, ended, b"begun\nso\n", exactly=exactly)


class Exit(Action):
    """A job writes its output and ends."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._gate = bench.gate()
        script = f"read x < {self._gate}; cat {bench.output_path}; exit {EXIT_CODE}"
        self._job_id = bench.link.start("/bin/sh", "-c", script).job_id

    def act(self, link: Link) -> None:
        # Waits until the job is there to read, and lets it go on.
        os.close(os.open(self._gate, os.O_WRONLY))
        link.wait_ended(self._job_id)

    def settle(self, link: Link, *, exactly: bool) -> None:
        ended = link.wait_ended(self._job_id)
        assert (ended.end_reason, ended.exit_code) == (EndReason.EXITED, EXIT_CODE), ended
        check_output(link, ended, OUTPUT, exactly=exactly)


class Stop(Action):
    """A job is told to end, does not, and is killed."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        script = "trap 'echo told' TERM; echo up; while :; do sleep 0.01; done"
        self._job_id = bench.link.start("/bin/sh", "-c", script).job_id
        bench.link.wait_output(self._job_id)

    def act(self, link: Link) -> None:
        link.stop(self._job_id, grace_ms=30, wait=False)
        link.wait_ended(self._job_id)

    def settle(self, link: Link, *, exactly: bool) -> None:
        with contextlib.suppress(JobAlreadyEnded):
            link.stop(self._job_id, force=True, wait=False)
        ended = link.wait_ended(self._job_id)
        assert (ended.end_reason, ended.signal) == (EndReason.STOPPED, signal.SIGKILL), ended
        if exactly:
            assert link.read_log(ended).startswith(b"up\n")


def check_output(link: Link, ended: JobRecord, output: bytes, *, exactly: bool) -> None:
    """All of it is there, or counted as lost."""
    assert ended.log_bytes == len(output), ended
    if exactly:
        assert ended.lost_bytes == 0
    if not ended.lost_bytes:
        assert link.read_log(ended) == output


class Bench:
    """A keeper and supervisor to which faults are done.

    Attributes:
        link: a subscribed connection to the present supervisor.
        restarts: how often the keeper has had to start another one.
    """

    def __init__(self, side: RootSide) -> None:
        self._side = side
        self._numbers = itertools.count(1)
        self._directory = os.path.dirname(side.state_dir)
        self.output_path = os.path.join(self._directory, "output")
        with open(self.output_path, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(OUTPUT)
        self.restarts = 0
        self._pid = side.supervisor_pid()
        self.link = side.link(subscribe=True)
        self._kept = descriptors(side.keeper.pid)
        # What the supervisor opens once and keeps is open afterwards.
        self.link.wait_ended(self.link.start("/bin/true").job_id)
        with open(f"{side.state_dir}/instance") as file:
            self._instance = file.read()
        until(lambda: descriptors(side.keeper.pid), self._kept)
        self._open_files = side.open_files(self.link)

    def next_number(self) -> int:
        return next(self._numbers)

    def job_directories(self) -> set[str]:
        return set(os.listdir(f"{self._side.state_dir}/jobs"))

    def gate(self) -> str:
        path = os.path.join(self._directory, f"gate{self.next_number()}")
        os.mkfifo(path)
        os.chmod(path, 0o666)  # noqa: S103
        return path

    def record(self, action: Callable[[Bench], Action]) -> list[Call]:
        """The system calls of an action that nothing goes wrong with."""
        recorder, once = strace.Recorder(), action(self)
        with recorder.recording(self._pid):
            once.act(self.link)
        self._settle(once, exactly=True)
        return recorder.calls

    def kill(self, action: Callable[[Bench], Action], call: Call) -> None:
        """Do it with the supervisor killed before the call."""
        once = action(self)
        with strace.attached(self._pid, *strace.killing(call)):
            self._act(once)
        self._settle(once, exactly=True)

    def fail(self, action: Callable[[Bench], Action], call: Call, error: str) -> None:
        """Do it with the call failing."""
        once = action(self)
        with strace.attached(self._pid, *strace.failing(call, error)):
            self._act(once)
        # A call that was not made has closed nothing.
        self._settle(once, exactly=False, leaks=call.name == "close")

    def _act(self, once: Action) -> None:
        with contextlib.suppress(ConnectionError, HostFault):
            once.act(self.link)

    def _settle(self, once: Action, *, exactly: bool, leaks: bool = False) -> None:
        self._reconnect_if_restarted()
        once.settle(self.link, exactly=exactly)
        self.check_nothing_is_left(leaks=leaks)

    def _reconnect_if_restarted(self) -> None:
        try:
            self.link.ask(messages.InspectJob("none-0000-0000-0000"))
        except ConnectionError:
            self._reconnect()
        except JobWorkerError:
            return

    def _reconnect(self) -> None:
        self.link.close()
        self.link = self._side.reconnect(subscribe=True)
        self._pid = self._side.supervisor_pid()
        self.restarts += 1

    def restart(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        self.link.drain()
        self._reconnect()

    def check_nothing_is_left(self, *, leaks: bool) -> None:
        """Nothing of any job but its directory; what could not be removed is swept by the next supervisor."""
        try:
            until(self.leftovers, {}, _REMOVED_SECONDS)
        except AssertionError:
            self.restart()
            until(self.leftovers, {})
        if leaks:
            self.restart()
        until(lambda: self._side.open_files(self.link) - self._open_files, 0)

    def leftovers(self) -> dict[str, object]:
        first, count = self._side.settings.jobs.first_uid, self._side.settings.jobs.uid_count
        jobs = [os.listdir(path) for path in cgroups(self._instance)]
        found = {
            "processes": processes_of(range(first, first + count)),
            "cgroups": {name for names in jobs for name in names if name.count("-") == 3},
            "kept": descriptors(self._side.keeper.pid) - self._kept,
        }
        return {what: which for what, which in found.items() if which}


def failures(calls: Iterable[Call]) -> Iterator[tuple[Call, str]]:
    """Each call with each of its errors."""
    return ((call, error) for call in calls for error in ERRORS.get(call.name, ()))


def sample(items: Sequence[_T], count: int) -> list[_T]:
    """So many of them, evenly spread; all for 0."""
    step = max(1, len(items) // count) if count else 1
    return list(items[::step])

"""The limits file changed over and over, every tenth time into what is none, while many start jobs by it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobworker.errors import InvalidField
from jobworker.jobs import EndReason, JobRecord
from jobworker.wire import messages
from support.limit_files import kernel_limits
from support.link import DEADLINE, Link
from support.root_side import RootSide, root_side

pytestmark = pytest.mark.root

# `make load` has a thousand.
CHANGES = int(os.environ.get("JOBWORKER_RELOADS", "60"))
BROKEN_EVERY = 10
CONNECTIONS = 4
_MEMORY = 64


def good(number: int) -> str:
    """One profile, whose number of processes tells which file it is from."""
    return f"version: 1\nprofiles: {{it: {{pids: {100 + number}, memory: {_MEMORY}M}}}}\n"


class Starting:
    """Starts job after job on a connection of its own, until it is told that it is over.

    Attributes:
        pids: the limit that each of its jobs had.
    """

    def __init__(self, link: Link, news: threading.Condition) -> None:
        self.pids: list[str] = []
        self._link, self._news = link, news
        self._over = threading.Event()

    def run(self) -> None:
        try:
            while not self._over.is_set():
                job = self._link.start("/bin/true", profile="it")
                assert self._link.wait_ended(job.job_id).end_reason is EndReason.EXITED
                with self._news:
                    self.pids.append(pids_of(job))
                    self._news.notify()
        finally:
            self.end()

    def end(self) -> None:
        self._over.set()
        with self._news:
            self._news.notify()

    def has_more_than(self, jobs: int) -> bool:
        """Whether it has; or will have no more."""
        return len(self.pids) > jobs or self._over.is_set()


class Load:
    """Connections that start jobs, all at the same time."""

    def __init__(self, side: RootSide) -> None:
        self._news = threading.Condition()
        self._starting = [Starting(side.link(subscribe=True), self._news) for _ in range(CONNECTIONS)]
        self._threads = ThreadPoolExecutor(CONNECTIONS)
        self._running = [self._threads.submit(one.run) for one in self._starting]

    def next_pids(self) -> set[str]:
        """The limits of jobs that are started from now on, at least one on each connection."""
        with self._news:
            # One may have been on its way before.
            enough = [len(one.pids) + 1 for one in self._starting]
            begun = self._news.wait_for(
                lambda: all(map(Starting.has_more_than, self._starting, enough)), timeout=DEADLINE
            )
            assert begun, "no jobs are started"
            return {pids for one, jobs in zip(self._starting, enough, strict=True) for pids in one.pids[jobs:]}

    def end(self) -> int:
        """How many jobs there were in all.

        Raises:
            AssertionError: one did not run.
        """
        for one in self._starting:
            one.end()
        self._threads.shutdown()
        for running in self._running:
            running.result()
        return sum(len(one.pids) for one in self._starting)


@contextlib.contextmanager
def load(side: RootSide) -> Iterator[Load]:
    running = Load(side)
    try:
        yield running
    finally:
        running.end()


def pids_of(job: JobRecord) -> str:
    return next(status.value for status in job.limits if status.name == "pids")


@pytest.mark.timeout(60 + 2 * CHANGES)
def test_many_changes_under_load() -> None:
    # Every change is a file: not to measure a slow disk.
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="jobworker-test-", dir=base) as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        with root_side(directory, limits=good(0)) as side, load(side) as others:
            link = side.link()
            standing = [link.start("/bin/sleep", "1000", profile="it") for _ in range(5)]
            in_force = 0
            for number in range(1, CHANGES + 1):
                broken = number % BROKEN_EVERY == 0
                side.write_limits(f"version: 1\nprofiles: {{it: {{pids: {number}\n" if broken else good(number))
                in_force = in_force if broken else number
                assert others.next_pids() == {str(100 + in_force)}
                host = link.ask(messages.ReadLimits()).host
                assert bool(host.limits_problem) == broken, host.limits_problem
                with pytest.raises(InvalidField):
                    link.start("/bin/true", profile="other")
            for job in standing:
                assert link.inspect(job.job_id).limits == job.limits
                assert kernel_limits(job) == {"pids": "100", "memory": f"{_MEMORY}M"}
                assert link.stop(job.job_id, force=True).end_reason is EndReason.STOPPED

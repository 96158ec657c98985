"""What the jobs of hosts use at the moment, from the difference of two looks at them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from jobworker.cli import client_json
from jobworker.client.failures import CallFailed
from jobworker.jobs import ACTIVE, State

if TYPE_CHECKING:
    from jobworker.api.v1.job_pb2 import Job
    from jobworker.client.rpc.client import Client

# Each job is asked for by itself: only that answer has its usage of this moment.
_CALLS = 8


@dataclass(frozen=True, slots=True)
class Use:
    """One job, and what it uses.

    Attributes:
        host: that it runs on.
        cpu: in percent of one CPU.
        read: from disks, in bytes a second.
        written: likewise.
        measured: these three are known, which takes two looks.
    """

    job: Job
    host: str
    cpu: float = 0.0
    read: float = 0.0
    written: float = 0.0
    measured: bool = False


@dataclass(frozen=True, slots=True)
class _Look:
    """One job at one time of the monotonic clock, in seconds."""

    job: Job
    at: float


@dataclass(frozen=True, slots=True)
class Picture:
    """Hosts at one moment.

    Attributes:
        name: what they are called.
        uses: of the newest active jobs.
        more: there are active jobs that were not looked at.
    """

    name: str
    uses: tuple[Use, ...]
    more: bool


class Looks(Protocol):
    """What can be looked at again and again."""

    def sample(self) -> Picture:
        """Look once.

        Raises:
            JobWorkerError: there is nothing to be seen.
        """
        ...


class Sampler:
    """Looks at the newest active jobs of one agent.

    Args:
        most: at so many of them.
        host: what to call it; by default as it calls itself.
    """

    def __init__(self, client: Client, most: int, host: str = "") -> None:
        self._client = client
        self._most = most
        self._before: dict[str, _Look] = {}
        self._host = host

    def sample(self) -> Picture:
        self._host = self._host or self._hostname()
        ids = [job.id for job in islice(self._client.list_jobs(states=ACTIVE), self._most + 1)]
        with ThreadPoolExecutor(_CALLS) as calls:
            looks = [look for look in calls.map(self._look, ids[: self._most]) if look]
        uses = tuple(_use(self._before.get(look.job.id), look, self._host) for look in looks)
        self._before = {look.job.id: look for look in looks}
        return Picture(self._host, uses, more=len(ids) > self._most)

    def _hostname(self) -> str:
        try:
            return self._client.agent_info().hostname
        except CallFailed as failure:
            # A policy may deny that, and allow looking at jobs.
            if failure.code != "PERMISSION_DENIED":
                raise
            return "-"

    def _look(self, job_id: str) -> _Look | None:
        """The job as it is now; None if there is nothing to see any more."""
        try:
            job = self._client.query(job_id)
        except CallFailed as failure:
            if failure.code != "NOT_FOUND":
                raise
            return None
        ended = client_json.enum_name(job, "state") == State.ENDED.value
        return None if ended else _Look(job, time.monotonic())


def _use(before: _Look | None, now: _Look, host: str) -> Use:
    if before is None or now.at <= before.at:
        return Use(now.job, host)
    seconds, old, new = now.at - before.at, before.job.usage, now.job.usage
    # A figure that the host could not tell for once is 0, and the next one no rate.
    return Use(
        now.job,
        host,
        cpu=100 * max(0.0, client_json.seconds(new.cpu_time) - client_json.seconds(old.cpu_time)) / seconds,
        read=max(0, new.io_read_bytes - old.io_read_bytes) / seconds,
        written=max(0, new.io_written_bytes - old.io_written_bytes) / seconds,
        measured=True,
    )

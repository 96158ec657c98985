"""What the gateway keeps of a job: what is looked for, and all of it as clients get it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from jobworker.api.v1 import job_pb2
from jobworker.gateway import outgoing
from jobworker.gateway.order import Position
from jobworker.jobs import EndReason, JobRecord, State

_ALL = "all"


@dataclass(frozen=True, slots=True)
class Known:
    """A job as last heard of. The fields are those of `JobRecord`; the rest is in the message.

    Attributes:
        message: the encoded `Job`. So an ended job takes up less than a kilobyte, and is listed without being
            put together anew.
    """

    job_id: str
    created_ns: int
    ended_ns: int
    state: State
    end_reason: EndReason | None
    stuck: bool
    principal: str
    labels: tuple[tuple[str, str], ...]
    segment_bytes: int
    log_bytes: int
    lost_bytes: int
    output_ended: bool
    message: bytes

    @property
    def position(self) -> Position:
        return self.created_ns, self.job_id

    def keys(self) -> tuple[Hashable, ...]:
        """Those under which it is found in `Timelines`."""
        return _ALL, self.state, ("principal", self.principal), *((label,) for label in self.labels)

    def write_to(self, job: job_pb2.Job) -> job_pb2.Job:
        """Fill in an empty message."""
        job.MergeFromString(self.message)
        # The log may have grown since.
        job.log_bytes, job.lost_bytes, job.output_ended = self.log_bytes, self.lost_bytes, self.output_ended
        return job

    def job(self) -> job_pb2.Job:
        return self.write_to(job_pb2.Job())


def known(record: JobRecord, share: Callable[[Any], Any]) -> Known:
    """What is kept of a record.

    Args:
        record: as the supervisor reported it.
        share: returns an equal value that is there already, so that it is held once.
    """
    return Known(
        job_id=record.job_id,
        created_ns=record.created_ns,
        ended_ns=record.ended_ns,
        state=record.state,
        end_reason=record.end_reason,
        stuck=record.stuck,
        principal=share(record.principal),
        labels=share(record.labels),
        segment_bytes=share(record.segment_bytes),
        log_bytes=record.log_bytes,
        lost_bytes=record.lost_bytes,
        output_ended=record.output_ended,
        message=outgoing.job(record).SerializeToString(),
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs to list: those that fit everything that is given.

    Attributes:
        since_ns, until_ns: created then or later, and before then, in Unix time; None for whenever.
    """

    states: frozenset[State] = frozenset()
    labels: tuple[tuple[str, str], ...] = ()
    principal: str = ""
    id_prefix: str = ""
    since_ns: int | None = None
    until_ns: int | None = None

    def fits(self, job: Known) -> bool:
        return (
            (not self.states or job.state in self.states)
            and (not self.principal or job.principal == self.principal)
            and job.job_id.startswith(self.id_prefix)
            and all(label in job.labels for label in self.labels)
            and (self.since_ns is None or job.created_ns >= self.since_ns)
            and (self.until_ns is None or job.created_ns < self.until_ns)
        )

    def choices(self) -> Iterator[tuple[Hashable, ...]]:
        """Keys of `Timelines`, as `Timelines.fewest` takes them."""
        yield (_ALL,)
        if self.states:
            yield tuple(self.states)
        if self.principal:
            yield (("principal", self.principal),)
        yield from (((label,),) for label in self.labels)

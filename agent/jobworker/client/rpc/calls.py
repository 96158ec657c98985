"""The calls of the contract, each as what to send, how to read the answer, and whether it may be made again.

Clients differ in how they make calls, with threads or in an event loop; all else is here, and in `stream`,
`watch`, `waiting` and `upload`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from jobworker import jobs
from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client.failures import AmbiguousId
from jobworker.client.rpc import ids, requests
from jobworker.client.rpc.backoff import Backoff
from jobworker.client.rpc.retries import ONCE, READ
from jobworker.client.rpc.stream import Position
from jobworker.errors import JobNotFound
from jobworker.limits import Limits

Result = TypeVar("Result")

# What an agent takes where no grace is given.
DEFAULT_GRACE_MS = 10_000
_PAGE = 100
# Of jobs whose ids begin alike, so many are told.
CANDIDATES = 5


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One call with one answer.

    Attributes:
        method: its name in the contract.
        read: what the answer comes to.
        backoff: further attempts while the agent is unavailable; none where the first may have got through.
        more_seconds: that it may take on top of a client's time for a call.
    """

    method: str
    request: Any
    read: Callable[[Any], Result]
    backoff: Backoff = ONCE
    more_seconds: float = 0.0


def _job(response: Any) -> job_pb2.Job:
    return ids.checked(response.job)


def _plan(response: pb.StartResponse) -> pb.StartResponse:
    # A job that would be started has no id yet.
    if response.job.id:
        ids.checked(response.job)
    return response


def start(spec: jobs.JobSpec, idempotency_key: str) -> Call[job_pb2.Job]:
    backoff = READ if idempotency_key else ONCE
    return Call("Start", requests.start(spec, idempotency_key), _job, backoff)


def plan(spec: jobs.JobSpec, idempotency_key: str) -> Call[pb.StartResponse]:
    request = requests.start(spec, idempotency_key)
    request.dry_run = True
    return Call("Start", request, _plan, READ)


def stop(job_id: str, signal: str, grace_ms: int, *, force: bool, wait: bool) -> Call[job_pb2.Job]:
    request = requests.stop(job_id, signal, grace_ms, force=force, wait=wait)
    return Call("Stop", request, _job, more_seconds=grace_ms / 1000 if wait and not force else 0)


def signal(job_id: str, name: str, *, everyone: bool) -> Call[job_pb2.Job]:
    return Call("Signal", requests.signal(job_id, name, everyone=everyone), _job)


def update(job_id: str, limits: Limits, *, force: bool) -> Call[job_pb2.Job]:
    return Call("Update", requests.update(job_id, limits, force=force), _job, READ)


def delete(job_id: str) -> Call[None]:
    return Call("Delete", requests.delete(job_id), lambda _: None)


def query(job_id: str) -> Call[job_pb2.Job]:
    return Call("Query", requests.query(job_id), _job, READ)


def agent_info() -> Call[pb.GetAgentInfoResponse]:
    return Call("GetAgentInfo", pb.GetAgentInfoRequest(), lambda response: response, READ)


def drain() -> Call[tuple[str, ...]]:
    return Call(
        "Drain", pb.DrainRequest(), lambda response: tuple(map(ids.checked_id, response.active_job_ids)), READ
    )


def undrain() -> Call[None]:
    return Call("Undrain", pb.UndrainRequest(), lambda _: None, READ)


def reload() -> Call[pb.ReloadResponse]:
    return Call("Reload", pb.ReloadRequest(), lambda response: response, READ)


class Pages:
    """A list, page by page; `next` is the call for the next page, None behind the last one."""

    def __init__(
        self,
        states: Iterable[jobs.State],
        labels: Mapping[str, str] | None,
        principal: str,
        id_prefix: str,
        created_since_ns: int | None,
        created_until_ns: int | None,
    ) -> None:
        self._request = requests.listing(
            states, labels, principal, id_prefix, created_since_ns, created_until_ns, _PAGE
        )
        self.next: Call[Sequence[job_pb2.Job]] | None = self._call()

    def _call(self) -> Call[Sequence[job_pb2.Job]]:
        return Call("List", self._request, self._read, READ)

    def _read(self, page: pb.ListResponse) -> Sequence[job_pb2.Job]:
        self._request.page_token = page.next_page_token
        self.next = self._call() if page.next_page_token else None
        return [ids.checked(job) for job in page.jobs]


class Reading:
    """A stream of output: what to ask for, wherever it has got to.

    Attributes:
        position: where it has got to.
    """

    def __init__(
        self, job_id: str, offset: int, tail_lines: int | None, since_ns: int | None, **wanted: Any
    ) -> None:
        ask = partial(requests.stream, job_id, **wanted)
        self._first = ask(offset=offset, tail_lines=tail_lines, since_ns=since_ns)
        self._again = partial(ask, tail_lines=None, since_ns=None)
        relative = tail_lines is not None or since_ns is not None
        self.position = Position(offset, filtered=wanted["source"] is not None, unknown=relative)

    def request(self) -> pb.StreamRequest:
        return self._first if self.position.unknown else self._again(offset=self.position.offset)


def watched(job_ids: tuple[str, ...]) -> tuple[str, ...]:
    """The ids to watch jobs by: of more than a watch may name, none, and those of others are passed over."""
    return job_ids if len(job_ids) <= jobs.MAX_WATCHED else ()


def prefix_of(text: str) -> str:
    """The beginning of an id that this is; empty if it is a whole id.

    Raises:
        InvalidField: it is neither.
    """
    if len(text) == len(jobs.ID_EXAMPLE):
        jobs.check_job_id(text)
        return ""
    return jobs.check_job_id_prefix(text, "job_id")


def only(prefix: str, found: Sequence[job_pb2.Job]) -> str:
    """The id of the one job that was found.

    Raises:
        JobNotFound: there is none.
        AmbiguousId: there are several.
    """
    if not found:
        raise JobNotFound(prefix)
    if len(found) > 1:
        raise AmbiguousId(prefix, tuple(job.id for job in found))
    return found[0].id

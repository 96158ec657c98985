"""The calls of the contract as methods."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Self

from jobworker import jobs
from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client.endpoint import Endpoint
from jobworker.client.failures import AmbiguousId
from jobworker.client.output import Item
from jobworker.client.rpc import requests
from jobworker.client.rpc.backoff import Backoff
from jobworker.client.rpc.connection import Connection
from jobworker.client.rpc.stream import Position, resumed
from jobworker.errors import JobNotFound

# What an agent takes where no grace is given.
DEFAULT_GRACE_MS = 10_000

# A restarting agent is back in seconds: three of them for a call that someone waits for, 25 for a stream.
_READ = Backoff(attempts=5)
_STREAM = Backoff(attempts=10)
_PAGE = 100
_CANDIDATES = 5


class Client:
    """One agent; a context manager. Several threads may use it.

    Every method raises a JobWorkerError: CallFailed with what the agent answered, TlsProblem where no
    connection came about, InvalidField for what no agent would take. While the agent is unavailable, reads
    are tried again for a moment; Start and Stop are not, because the first attempt may have got through.
    """

    def __init__(self, endpoint: Endpoint, timeout: float = 30.0) -> None:
        """Prepare the connection; it comes about with the first call.

        Args:
            endpoint: the agent, and the files for mutual TLS with it.
            timeout: for each call but `stream`, in seconds; `stop` has the grace on top.
        """
        self._connection = Connection(endpoint)
        self._stub = self._connection.stub
        self._timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and with it the calls that are under way."""
        self._connection.close()

    def start(self, spec: jobs.JobSpec, *, idempotency_key: str = "") -> job_pb2.Job:
        """Start a job; answers after its command was executed.

        Args:
            spec: what to run.
            idempotency_key: makes it safe to ask again, which this then does by itself while the agent is
                unavailable: the same key with the same specification gets the job that is there already.
        """
        request = requests.start(spec, idempotency_key)
        again = (_READ,) if idempotency_key else ()
        return self._connection.call(self._stub.Start, request, self._timeout, *again).job

    def stop(
        self,
        job_id: str,
        *,
        signal: str = "",
        grace_ms: int = DEFAULT_GRACE_MS,
        force: bool = False,
        wait: bool = True,
    ) -> job_pb2.Job:
        """Stop a job: a signal, a grace to end by itself, then the kill of all that is left of it.

        Args:
            job_id: a whole id.
            signal: the first signal's name; empty for TERM.
            grace_ms: at most one hour.
            force: kill at once.
            wait: answer when no process of the job is left, rather than when the stop is under way.
        """
        request = requests.stop(job_id, signal, grace_ms, force=force, wait=wait)
        grace = grace_ms / 1000 if wait and not force else 0
        return self._connection.call(self._stub.Stop, request, self._timeout + grace).job

    def query(self, job_id: str) -> job_pb2.Job:
        """Everything known of a job."""
        request = pb.QueryRequest(job_id=job_id)
        return self._connection.call(self._stub.Query, request, self._timeout, _READ).job

    def stream(
        self,
        job_id: str,
        *,
        offset: int = 0,
        tail_lines: int | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
        follow: bool = False,
        source: jobs.Source | None = None,
        timestamps: bool = False,
    ) -> Generator[Item, None, None]:
        """A job's output, resumed by itself after every broken connection.

        Closing the iterator ends the call. Times are nanoseconds of Unix time, by the clock of the job's host.

        Args:
            job_id: a whole id.
            offset: the absolute offset to begin at.
            tail_lines: begin this many lines before the end.
            since_ns: begin with what was written at this time or later.
            until_ns: end before what was written at this time or later.
            follow: go on with new output until it has ended.
            source: only what this descriptor wrote.
            timestamps: tell of each chunk who wrote it and when.
        """
        ask = partial(
            requests.stream, job_id, until_ns=until_ns, follow=follow, source=source, timestamps=timestamps
        )
        first = ask(offset=offset, tail_lines=tail_lines, since_ns=since_ns)
        relative = tail_lines is not None or since_ns is not None
        position = Position(offset, filtered=source is not None, unknown=relative)

        def open_at(resumed_at: int) -> Iterator[pb.StreamResponse]:
            request = first
            if not position.unknown:
                request = ask(offset=resumed_at, tail_lines=None, since_ns=None)
            return self._connection.stream(self._stub.Stream, request)

        return resumed(open_at, position, _STREAM)

    def list_jobs(
        self,
        *,
        states: Iterable[jobs.State] = (),
        labels: Mapping[str, str] | None = None,
        principal: str = "",
        id_prefix: str = "",
    ) -> Iterator[job_pb2.Job]:
        """The jobs of the host, newest first; pages are fetched as they are needed."""
        request = pb.ListRequest(
            states=[job_pb2.JobState.Value(f"JOB_STATE_{state.value}") for state in states],
            labels=labels,
            principal=principal,
            id_prefix=id_prefix,
            page_size=_PAGE,
        )
        while True:
            page = self._connection.call(self._stub.List, request, self._timeout, _READ)
            yield from page.jobs
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def agent_info(self) -> pb.GetAgentInfoResponse:
        """What the agent and its host are."""
        request = pb.GetAgentInfoRequest()
        return self._connection.call(self._stub.GetAgentInfo, request, self._timeout, _READ)

    def resolve(self, text: str) -> str:
        """The id of the one job whose id this is or begins with.

        Raises:
            JobNotFound: there is none.
            AmbiguousId: there are several.
        """
        if len(text) == len(jobs.ID_EXAMPLE):
            return jobs.check_job_id(text)
        prefix = jobs.check_job_id_prefix(text, "job_id")
        found = tuple(job.id for job in islice(self.list_jobs(id_prefix=prefix), _CANDIDATES))
        if not found:
            raise JobNotFound(prefix)
        if len(found) > 1:
            raise AmbiguousId(prefix, found)
        return found[0]

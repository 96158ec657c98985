"""The calls of the contract as methods."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Self

from jobworker import jobs
from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client.changes import Event
from jobworker.client.endpoint import Endpoint
from jobworker.client.failures import AmbiguousId
from jobworker.client.output import Item
from jobworker.client.rpc import requests, watch
from jobworker.client.rpc.backoff import Backoff
from jobworker.client.rpc.connection import Connection
from jobworker.client.rpc.stream import Position, resumed
from jobworker.client.rpc.waiting import ends, idle
from jobworker.errors import JobNotFound
from jobworker.limits import Limits

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
    are tried again for a moment; calls that change something are not, because the first attempt may have got
    through.
    """

    def __init__(
        self, endpoint: Endpoint, timeout: float = 30.0, connect_timeout: float = 5.0, request_id: str = ""
    ) -> None:
        """Prepare the connection; it comes about with the first call.

        Args:
            endpoint: the agent, and the files for mutual TLS with it.
            timeout: for each call that is not a stream of answers, in seconds; `stop` has the grace on top.
            connect_timeout: for a connection to come about, in seconds.
            request_id: the agent's log, its audit trail, and the records of jobs that are started name all calls
                by it; empty for one of its own for each.
        """
        if request_id:
            jobs.check_request_id(request_id, "request_id")
        self._connection = Connection(endpoint, connect_timeout, request_id)
        self._stub = self._connection.stub
        self._timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and with it the calls that are under way."""
        self._connection.close()

    def reach(self) -> None:
        """Have the connection come about now, rather than with the first call."""
        self._connection.reach()

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

    def plan(self, spec: jobs.JobSpec, *, idempotency_key: str = "") -> pb.StartResponse:
        """What `start` would do now, without doing it: fails as that would, or tells the job as it would be.

        What only the launch can find out is not known: whether the command exists, say.

        Args:
            spec: what to run.
            idempotency_key: the job that has it already, if there is one, is the answer's.
        """
        request = requests.start(spec, idempotency_key)
        request.dry_run = True
        return self._connection.call(self._stub.Start, request, self._timeout, _READ)

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

    def signal(self, job_id: str, signal: str, *, everyone: bool = False) -> job_pb2.Job:
        """Send one signal to a job's main process.

        Args:
            job_id: a whole id.
            signal: its name: `HUP`.
            everyone: to each process of the job that there is at the moment.
        """
        request = requests.signal(job_id, signal, everyone=everyone)
        return self._connection.call(self._stub.Signal, request, self._timeout).job

    def update(self, job_id: str, limits: Limits, *, force: bool = False) -> job_pb2.Job:
        """Give a running job new limits, all of them or none; tried again while the agent is unavailable.

        Args:
            job_id: a whole id.
            limits: those that change.
            force: limit the memory also to less than the job has now.
        """
        request = requests.update(job_id, limits, force=force)
        return self._connection.call(self._stub.Update, request, self._timeout, _READ).job

    def delete(self, job_id: str) -> None:
        """Remove an ended job: its record, its output and its working directory.

        Args:
            job_id: a whole id.
        """
        self._connection.call(self._stub.Delete, pb.DeleteRequest(job_id=job_id), self._timeout)

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
        output_format: jobs.OutputFormat = jobs.OutputFormat.BINARY,
        compress: bool = False,
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
            timestamps: tell of each chunk who wrote it and when, or put that time before each line of TEXT.
            output_format: TEXT and JSON come as `Lines`. A line that is not complete yet is waited for, or comes
                with a later stream.
            compress: have the agent compress the answers, for networks that are slower than gzip.
        """
        ask = partial(
            requests.stream,
            job_id,
            until_ns=until_ns,
            follow=follow,
            source=source,
            timestamps=timestamps,
            output_format=output_format,
        )
        first = ask(offset=offset, tail_lines=tail_lines, since_ns=since_ns)
        relative = tail_lines is not None or since_ns is not None
        position = Position(offset, filtered=source is not None, unknown=relative)

        def open_at(resumed_at: int) -> Iterator[pb.StreamResponse]:
            request = first
            if not position.unknown:
                request = ask(offset=resumed_at, tail_lines=None, since_ns=None)
            return self._connection.stream(self._stub.Stream, request, compress=compress)

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
            states=requests.state_numbers(states),
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

    def watch(
        self,
        *,
        job_ids: Iterable[str] = (),
        states: Iterable[jobs.State] = (),
        labels: Mapping[str, str] | None = None,
        principal: str = "",
        snapshot: bool = False,
        resume_token: str = "",
        timeout: float | None = None,
    ) -> Generator[Event, None, None]:
        """Changes of jobs, resumed by itself after every broken connection. Without an end, but by closing it.

        Where the agent does not know any more what had to be told next, a `Restarted` says so, and a snapshot
        follows.

        Args:
            job_ids: whole ids, up to 200; none for all jobs.
            states: only jobs that are in one of these when they are told.
            labels: only jobs that have all of these.
            principal: only this client's jobs.
            snapshot: begin with the jobs as they are now, and a `Mark` behind them.
            resume_token: begin behind the event that had this token; a CallFailed with the reason WATCH_EXPIRED
                says that this cannot be had any more.
            timeout: a CallFailed with the code DEADLINE_EXCEEDED comes after so many seconds.
        """
        request = requests.watch(job_ids, states, labels, principal)
        deadline = math.inf if timeout is None else time.monotonic() + timeout

        def open_at(standing: watch.Standing) -> Iterator[pb.WatchResponse]:
            request.resume_token, request.snapshot = standing.token, standing.snapshot
            left = None if timeout is None else max(0.0, deadline - time.monotonic())
            return self._connection.stream(self._stub.Watch, request, left)

        return watch.resumed(open_at, watch.Standing(resume_token, snapshot), _STREAM, deadline)

    def ends(self, job_ids: Iterable[str], *, timeout: float | None = None) -> Iterator[job_pb2.Job]:
        """Each of these jobs once it has ended, in the order of their ends.

        Args:
            job_ids: whole ids.
            timeout: in seconds; None waits for as long as it takes.

        Raises:
            JobNotFound: one of them does not exist, or was removed before its end was seen.
            WaitTimedOut: some have not ended in time.
        """
        wanted = tuple(dict.fromkeys(job_ids))
        if not wanted:
            return iter(())
        # Of more than a watch may name, those of all others are passed over here.
        named = wanted if len(wanted) <= jobs.MAX_WATCHED else ()
        return ends(self.watch(job_ids=named, snapshot=True, timeout=timeout), wanted)

    def wait(
        self, job_ids: Iterable[str], *, first: bool = False, timeout: float | None = None
    ) -> list[job_pb2.Job]:
        """Wait until these jobs have ended; the jobs, in the order of their ends.

        Args:
            job_ids: whole ids.
            first: wait for one of them only, whichever ends first.
            timeout: in seconds; None waits for as long as it takes.

        Raises:
            JobNotFound: one of them does not exist, or was removed before its end was seen.
            WaitTimedOut: not all have ended in time, or with `first` none has.
        """
        found = self.ends(job_ids, timeout=timeout)
        return list(islice(found, 1 if first else None))

    def agent_info(self) -> pb.GetAgentInfoResponse:
        """What the agent and its host are."""
        request = pb.GetAgentInfoRequest()
        return self._connection.call(self._stub.GetAgentInfo, request, self._timeout, _READ)

    def drain(self) -> tuple[str, ...]:
        """Have the agent take no new jobs; the ids of those that have not ended, the oldest 10,000."""
        return tuple(
            self._connection.call(self._stub.Drain, pb.DrainRequest(), self._timeout, _READ).active_job_ids
        )

    def undrain(self) -> None:
        """Have the agent take new jobs again."""
        self._connection.call(self._stub.Undrain, pb.UndrainRequest(), self._timeout, _READ)

    def wait_idle(self, *, timeout: float | None = None) -> None:
        """Wait until no job is active.

        Args:
            timeout: in seconds; None waits for as long as it takes.

        Raises:
            WaitTimedOut: some have not ended in time.
        """
        idle(self.watch(snapshot=True, timeout=timeout))

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

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
from jobworker.client.options import Options
from jobworker.client.output import Item
from jobworker.client.rpc import calls, requests, stream, streams, watch
from jobworker.client.rpc.calls import Call, Result
from jobworker.client.rpc.connection import Connection
from jobworker.client.rpc.retries import STREAM
from jobworker.client.rpc.upload import Upload, Written
from jobworker.client.rpc.writing import Writer
from jobworker.limits import Limits


class Client:
    """One agent; a context manager. Several threads may use it.

    Every method raises a JobWorkerError: CallFailed with what the agent answered, TlsProblem where no
    connection came about, InvalidField for what no agent would take, ProtocolError for what none would answer.
    While an agent that was reached before is unavailable, reads are tried again for a moment; calls that change
    something are not, because the first attempt may have got through.
    """

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        """Prepare the connection; it comes about with the first call."""
        self._connection = Connection(endpoint, options)

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
        return self._make(calls.start(spec, idempotency_key))

    def plan(self, spec: jobs.JobSpec, *, idempotency_key: str = "") -> pb.StartResponse:
        """What `start` would do now, without doing it: fails as that would, or tells the job as it would be.

        What only the launch can find out is not known: whether the command exists, say.

        Args:
            spec: what to run.
            idempotency_key: the job that has it already, if there is one, is the answer's.
        """
        return self._make(calls.plan(spec, idempotency_key))

    def stop(
        self,
        job_id: str,
        *,
        signal: str = "",
        grace_ms: int = calls.DEFAULT_GRACE_MS,
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
        return self._make(calls.stop(job_id, signal, grace_ms, force=force, wait=wait))

    def signal(self, job_id: str, signal: str, *, everyone: bool = False) -> job_pb2.Job:
        """Send one signal to a job's main process.

        Args:
            job_id: a whole id.
            signal: its name: `HUP`.
            everyone: to each process of the job that there is at the moment.
        """
        return self._make(calls.signal(job_id, signal, everyone=everyone))

    def update(self, job_id: str, limits: Limits, *, force: bool = False) -> job_pb2.Job:
        """Give a running job new limits, all of them or none; tried again while the agent is unavailable.

        Args:
            job_id: a whole id.
            limits: those that change.
            force: limit the memory also to less than the job has now.
        """
        return self._make(calls.update(job_id, limits, force=force))

    def delete(self, job_id: str) -> None:
        """Remove an ended job: its record, its output and its working directory.

        Args:
            job_id: a whole id.
        """
        self._make(calls.delete(job_id))

    def query(self, job_id: str) -> job_pb2.Job:
        """Everything known of a job."""
        return self._make(calls.query(job_id))

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
        reading = calls.Reading(
            job_id,
            offset,
            tail_lines,
            since_ns,
            until_ns=until_ns,
            follow=follow,
            source=source,
            timestamps=timestamps,
            output_format=output_format,
        )

        def open_there() -> Iterator[pb.StreamResponse]:
            return self._connection.stream("Stream", reading.request(), compress=compress)

        return streams.output(open_there, stream.Resumption(reading.position, STREAM))

    def write_stdin(
        self,
        job_id: str,
        pieces: Iterable[bytes],
        *,
        offset: int | None = None,
        end: bool = True,
    ) -> Written:
        """Write to the standard input of a job that was started with it open.

        Comes back when the agent has taken everything, which it does as fast as the job reads; after broken
        connections it goes on behind what was taken. While `pieces` is waited for, what came before is under way.
        When this raises, what is under way may still be taken.

        Args:
            job_id: a whole id.
            pieces: bytes in pieces of any size; an iterator may take its time.
            offset: where the first byte belongs in all that the job has to read; None for behind what was taken.
            end: the job finds the end of its input behind them; otherwise it stays open.

        Raises:
            CallFailed: not all was taken; with the reason STDIN_ENDED the job takes no more than `taken` in the
                metadata says.
        """
        upload = Upload(job_id, offset, STREAM)
        return Writer(partial(self._connection.answers, "WriteStdin"), upload).write(pieces, end=end)

    def list_jobs(
        self,
        *,
        states: Iterable[jobs.State] = (),
        labels: Mapping[str, str] | None = None,
        principal: str = "",
        id_prefix: str = "",
        created_since_ns: int | None = None,
        created_until_ns: int | None = None,
    ) -> Iterator[job_pb2.Job]:
        """The jobs of the host, newest first; pages are fetched as they are needed.

        Args:
            states: only jobs that are in one of these.
            labels: only jobs that have all of these.
            principal: only this client's jobs.
            id_prefix: only jobs whose id begins with this, four characters or more.
            created_since_ns: only jobs that were created then or later, in nanoseconds of Unix time.
            created_until_ns: only jobs that were created before then.
        """
        pages = calls.Pages(states, labels, principal, id_prefix, created_since_ns, created_until_ns)
        while page := pages.next:
            yield from self._make(page)

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
        request = requests.watch(job_ids, states, labels, principal, resume_token)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        standing = watch.Standing(resume_token, snapshot)

        def open_there() -> Iterator[pb.WatchResponse]:
            request.resume_token, request.snapshot = standing.token, standing.snapshot
            return self._connection.stream("Watch", request, deadline)

        return streams.changes(open_there, watch.Resumption(standing, STREAM, deadline))

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
        return streams.ends(self.watch(job_ids=calls.watched(wanted), snapshot=True, timeout=timeout), wanted)

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
        return self._make(calls.agent_info())

    def drain(self) -> tuple[str, ...]:
        """Have the agent take no new jobs; the ids of those that have not ended, the oldest 10,000."""
        return self._make(calls.drain())

    def undrain(self) -> None:
        """Have the agent take new jobs again."""
        self._make(calls.undrain())

    def reload(self) -> pb.ReloadResponse:
        """Have the agent read certificates, revocations, policy and limits anew; which of them cannot be used."""
        return self._make(calls.reload())

    def until_idle(self, *, timeout: float | None = None) -> Iterator[int]:
        """How many jobs are active, now and each time that this changes; the last number is 0.

        Args:
            timeout: in seconds; None waits for as long as it takes.

        Raises:
            WaitTimedOut: some have not ended in time.
        """
        return streams.until_idle(self.watch(snapshot=True, timeout=timeout))

    def wait_idle(self, *, timeout: float | None = None) -> None:
        """Wait until no job is active; see `until_idle`."""
        for _ in self.until_idle(timeout=timeout):
            pass

    def resolve(self, text: str) -> str:
        """The id of the one job whose id this is or begins with.

        Raises:
            JobNotFound: there is none.
            AmbiguousId: there are several.
        """
        if not (prefix := calls.prefix_of(text)):
            return text
        return calls.only(prefix, tuple(islice(self.list_jobs(id_prefix=prefix), calls.CANDIDATES)))

    def _make(self, call: Call[Result]) -> Result:
        return self._connection.make(call)

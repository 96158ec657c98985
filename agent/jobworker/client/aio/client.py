"""The calls of the contract as methods to be awaited."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Self

from jobworker import jobs
from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client.aio import streams
from jobworker.client.aio.connection import Connection
from jobworker.client.changes import Event
from jobworker.client.endpoint import Endpoint
from jobworker.client.options import Options
from jobworker.client.output import Item
from jobworker.client.rpc import calls, requests, stream, watch
from jobworker.client.rpc.calls import Call, Result
from jobworker.client.rpc.retries import STREAM
from jobworker.client.rpc.upload import Upload, Written
from jobworker.limits import Limits


class AsyncClient:
    """One agent, for the event loop that it is made in; an asynchronous context manager.

    The methods are those of `jobworker.client.rpc.client.Client`, whose descriptions hold here as well: arguments,
    what is raised, and what is tried again. An iterator there is an asynchronous one here; to end it early,
    close it (`contextlib.aclosing`). Cancelling a task cancels its call.
    """

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        """Prepare the connection; it comes about with the first call."""
        self._connection = Connection(endpoint, options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection, and with it the calls that are under way."""
        await self._connection.close()

    async def reach(self) -> None:
        """Have the connection come about now, rather than with the first call."""
        await self._connection.reach()

    async def start(self, spec: jobs.JobSpec, *, idempotency_key: str = "") -> job_pb2.Job:
        """Start a job; answers after its command was executed."""
        return await self._make(calls.start(spec, idempotency_key))

    async def plan(self, spec: jobs.JobSpec, *, idempotency_key: str = "") -> pb.StartResponse:
        """What `start` would do now, without doing it."""
        return await self._make(calls.plan(spec, idempotency_key))

    async def stop(
        self,
        job_id: str,
        *,
        signal: str = "",
        grace_ms: int = calls.DEFAULT_GRACE_MS,
        force: bool = False,
        wait: bool = True,
    ) -> job_pb2.Job:
        """Stop a job: a signal, a grace to end by itself, then the kill of all that is left of it."""
        return await self._make(calls.stop(job_id, signal, grace_ms, force=force, wait=wait))

    async def signal(self, job_id: str, signal: str, *, everyone: bool = False) -> job_pb2.Job:
        """Send one signal to a job's main process, or to each of its processes."""
        return await self._make(calls.signal(job_id, signal, everyone=everyone))

    async def update(self, job_id: str, limits: Limits, *, force: bool = False) -> job_pb2.Job:
        """Give a running job new limits, all of them or none."""
        return await self._make(calls.update(job_id, limits, force=force))

    async def delete(self, job_id: str) -> None:
        """Remove an ended job: its record, its output and its working directory."""
        await self._make(calls.delete(job_id))

    async def query(self, job_id: str) -> job_pb2.Job:
        """Everything known of a job."""
        return await self._make(calls.query(job_id))

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
    ) -> AsyncGenerator[Item, None]:
        """A job's output, resumed by itself after every broken connection."""
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

        def open_there() -> AsyncGenerator[pb.StreamResponse, None]:
            return self._connection.stream("Stream", reading.request(), compress=compress)

        return streams.output(open_there, stream.Resumption(reading.position, STREAM))

    async def write_stdin(
        self,
        job_id: str,
        pieces: Iterable[bytes] | AsyncIterable[bytes],
        *,
        offset: int | None = None,
        end: bool = True,
    ) -> Written:
        """Write to the standard input of a job that was started with it open.

        Who has to wait for pieces gives an asynchronous iterator of them.
        """
        upload = Upload(job_id, offset, STREAM)
        open_call = partial(self._connection.answers, "WriteStdin")
        return await streams.write(open_call, upload, pieces, end=end)

    async def list_jobs(
        self,
        *,
        states: Iterable[jobs.State] = (),
        labels: Mapping[str, str] | None = None,
        principal: str = "",
        id_prefix: str = "",
        created_since_ns: int | None = None,
        created_until_ns: int | None = None,
    ) -> AsyncGenerator[job_pb2.Job, None]:
        """The jobs of the host, newest first; pages are fetched as they are needed."""
        pages = calls.Pages(states, labels, principal, id_prefix, created_since_ns, created_until_ns)
        while page := pages.next:
            for job in await self._make(page):
                yield job

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
    ) -> AsyncGenerator[Event, None]:
        """Changes of jobs, resumed by itself after every broken connection. Without an end, but by closing it."""
        request = requests.watch(job_ids, states, labels, principal, resume_token)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        standing = watch.Standing(resume_token, snapshot)

        def open_there() -> AsyncGenerator[pb.WatchResponse, None]:
            request.resume_token, request.snapshot = standing.token, standing.snapshot
            return self._connection.stream("Watch", request, deadline)

        return streams.changes(open_there, watch.Resumption(standing, STREAM, deadline))

    def ends(self, job_ids: Iterable[str], *, timeout: float | None = None) -> AsyncGenerator[job_pb2.Job, None]:
        """Each of these jobs once it has ended, in the order of their ends."""
        wanted = tuple(dict.fromkeys(job_ids))
        return streams.ends(self.watch(job_ids=calls.watched(wanted), snapshot=True, timeout=timeout), wanted)

    async def wait(
        self,
        job_ids: Iterable[str],
        *,
        first: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - as the other client has it
    ) -> list[job_pb2.Job]:
        """Wait until these jobs have ended, or with `first` one of them; those, in the order of their ends."""
        found: list[job_pb2.Job] = []
        async with aclosing(self.ends(job_ids, timeout=timeout)) as ended:
            async for job in ended:
                found.append(job)
                if first:
                    break
        return found

    async def agent_info(self) -> pb.GetAgentInfoResponse:
        """What the agent and its host are."""
        return await self._make(calls.agent_info())

    async def drain(self) -> tuple[str, ...]:
        """Have the agent take no new jobs; the ids of those that have not ended, the oldest 10,000."""
        return await self._make(calls.drain())

    async def undrain(self) -> None:
        """Have the agent take new jobs again."""
        await self._make(calls.undrain())

    async def reload(self) -> pb.ReloadResponse:
        """Have the agent read certificates, revocations, policy and limits anew; which of them cannot be used."""
        return await self._make(calls.reload())

    def until_idle(self, *, timeout: float | None = None) -> AsyncGenerator[int, None]:
        """How many jobs are active, now and each time that this changes; the last number is 0."""
        return streams.until_idle(self.watch(snapshot=True, timeout=timeout))

    async def wait_idle(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as the other client has it
        """Wait until no job is active; see `until_idle`."""
        async for _ in self.until_idle(timeout=timeout):
            pass

    async def resolve(self, text: str) -> str:
        """The id of the one job whose id this is or begins with."""
        if not (prefix := calls.prefix_of(text)):
            return text
        found: list[job_pb2.Job] = []
        async with aclosing(self.list_jobs(id_prefix=prefix)) as jobs_found:
            async for job in jobs_found:
                found.append(job)
                if len(found) == calls.CANDIDATES:
                    break
        return calls.only(prefix, found)

    async def _make(self, call: Call[Result]) -> Result:
        return await self._connection.make(call)

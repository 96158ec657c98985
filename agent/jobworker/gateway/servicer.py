"""The calls of the contract, behind the gate: each asks the mirror, the supervisor or the logs."""

# ruff: noqa: N802 - the contract names its calls like this

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext, suppress

from jobworker import __version__, jobs
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1 import job_worker_service_pb2_grpc as api
from jobworker.errors import JobAlreadyEnded, JobNotFound
from jobworker.gateway import incoming, outgoing
from jobworker.gateway.access import CALLER, PRINCIPAL
from jobworker.gateway.files import Files
from jobworker.gateway.follow import Feeds
from jobworker.gateway.gate import Context
from jobworker.gateway.known import Known
from jobworker.gateway.link import SupervisorLink
from jobworker.gateway.mirror import Mirror
from jobworker.gateway.output import Extent, Fixed, Output
from jobworker.gateway.permits import Permits
from jobworker.gateway.pieces import beginning
from jobworker.gateway.seek import Log, View
from jobworker.gateway.spans import launching
from jobworker.gateway.stdin import StdinWriters
from jobworker.gateway.streams import HOLD
from jobworker.gateway.trust import Trust
from jobworker.gateway.turns import Turns
from jobworker.gateway.watch import Watch
from jobworker.jobs import EndReason, State
from jobworker.wire.messages import (
    DeleteJob,
    Done,
    Drain,
    Drained,
    InspectJob,
    JobReply,
    StartPlanned,
)

# In a stream's trailers: where to go on.
RESUME_OFFSET, RESUME_TOKEN = "jobworker-resume-offset", "jobworker-resume-token"

# By default a client takes messages of up to 4 MiB; a single job may have 400 KiB.
_MAX_PAGE_BYTES = 2 * 1024 * 1024


class JobWorker(api.JobWorkerServiceServicer):
    """Every call of the service."""

    def __init__(
        self,
        link: SupervisorLink,
        mirror: Mirror,
        feeds: Feeds,
        output: Output,
        stdin: StdinWriters,
        permits: Permits,
        trust: Trust,
        files: Files,
    ) -> None:
        self._link = link
        self._mirror = mirror
        self._feeds = feeds
        self._output = output
        self._stdin = stdin
        self._permits = permits
        self._trust = trust
        self._files = files
        self._turns = Turns(of_pieces=True)

    async def Start(self, request: pb.StartRequest, _context: Context) -> pb.StartResponse:
        message = incoming.start(CALLER.get(), request)
        self._permits.start(PRINCIPAL.get(), message.spec)
        if message.dry_run:
            planned, _ = await self._link.ask(message, StartPlanned, repeatable=True)
            return pb.StartResponse(job=outgoing.job(planned.record), rule=planned.rule)
        with launching() as launch:
            reply, _ = await self._link.ask(message, JobReply, repeatable=bool(request.idempotency_key))
            launch.record = reply.record
        return pb.StartResponse(job=outgoing.job(reply.record))

    async def Stop(self, request: pb.StopRequest, _context: Context) -> pb.StopResponse:
        message, called_ns = incoming.stop(CALLER.get(), request), time.time_ns()
        try:
            await self._link.ask(message, JobReply, repeatable=True)
        except JobAlreadyEnded:
            # Asked again after the supervisor was away, it may find its own first attempt done.
            job = await self._mirror.find(message.job_id)
            if job.end_reason is not EndReason.STOPPED or job.ended_ns < called_ns:
                raise
        # Here and not in the supervisor: a wait outlives its restart, and holds none of its few places.
        reached = _always if request.no_wait else _is_stopped
        return pb.StopResponse(job=(await self._mirror.wait_for(message.job_id, reached)).job())

    async def Signal(self, request: pb.SignalRequest, _context: Context) -> pb.SignalResponse:
        reply, _ = await self._link.ask(incoming.signal_job(CALLER.get(), request), JobReply, repeatable=False)
        return pb.SignalResponse(job=outgoing.job(reply.record))

    async def WriteStdin(self, requests: AsyncIterator[pb.WriteStdinRequest], context: Context) -> None:  # type: ignore[override] # writes
        async with aclosing(self._stdin.answers(CALLER.get(), requests)) as answers:
            async for answer in answers:
                await context.write(answer)

    async def Update(self, request: pb.UpdateRequest, _context: Context) -> pb.UpdateResponse:
        # Asked again, it changes nothing more.
        reply, _ = await self._link.ask(incoming.update(CALLER.get(), request), JobReply, repeatable=True)
        return pb.UpdateResponse(job=outgoing.job(reply.record))

    async def Delete(self, request: pb.DeleteRequest, _context: Context) -> pb.DeleteResponse:
        job_id = jobs.check_job_id(request.job_id)
        await self._link.ask(DeleteJob(CALLER.get(), job_id), Done, repeatable=False)
        # The answer overtakes the news; who is told of it must not find the job in a list.
        with suppress(JobNotFound):
            await self._mirror.wait_for(job_id, _never)
        return pb.DeleteResponse()

    async def Query(self, request: pb.QueryRequest, _context: Context) -> pb.QueryResponse:
        job = await self._mirror.find(jobs.check_job_id(request.job_id))
        if job.state is not State.ENDED:
            job = await self._fresh(job.job_id)
        return pb.QueryResponse(job=job.job())

    async def _fresh(self, job_id: str) -> Known:
        """A job as it is now: the mirror takes in each answer before who asked gets it."""
        await self._link.ask(InspectJob(job_id), JobReply, repeatable=True)
        return await self._mirror.find(job_id)

    async def List(self, request: pb.ListRequest, _context: Context) -> pb.ListResponse:
        wanted, size = incoming.wanted(request), incoming.page_size(request)
        before = incoming.position(request.page_token)
        await self._mirror.current()
        found = self._mirror.page(wanted, before, size + 1, self._permits.sight(PRINCIPAL.get()))
        response, room = pb.ListResponse(), _MAX_PAGE_BYTES
        for job in found[:size]:
            job.write_to(response.jobs.add())
            room -= len(job.message)
            if room < 0:
                break
        if len(response.jobs) < len(found):
            response.next_page_token = incoming.page_token(found[len(response.jobs) - 1].position)
        return response

    async def Watch(self, request: pb.WatchRequest, context: Context) -> None:  # type: ignore[override] # writes
        watched, since = incoming.watched(request), incoming.resumed(request)
        await self._mirror.current()
        if since:
            self._mirror.changes.check(*since)
        sees = self._permits.sight(PRINCIPAL.get())
        watch = Watch(self._mirror, watched, sees, since and since[1], snapshot=request.snapshot)
        resume = request.resume_token
        try:
            async with aclosing(watch.messages()) as messages:
                async for told in messages:
                    await context.write(told.message)
                    resume = told.token or resume
        finally:
            _add_trailer(context, RESUME_TOKEN, resume)

    async def GetAgentInfo(self, _request: pb.GetAgentInfoRequest, _context: Context) -> pb.GetAgentInfoResponse:
        stale = await self._stale_files()
        host, system = await self._mirror.host(), os.uname()
        own, crl_ends = self._trust.credentials.get(), self._trust.revocations.get().ends
        return pb.GetAgentInfoResponse(
            version=__version__,
            hostname=system.nodename,
            kernel=system.release,
            cgroup_mode=host.cgroup_mode,
            limits=[outgoing.limit_support(support) for support in host.limits],
            cpus=host.cpus,
            memory_bytes=host.memory_bytes,
            active_jobs=self._mirror.active(),
            max_active_jobs=host.max_active_jobs,
            certificate_expires_at=outgoing.timestamp(own.expires_ns),
            ca_expires_at=outgoing.timestamp(own.ca_expires_ns),
            crl_expires_at=outgoing.timestamp(int((crl_ends or 0) * 1e9)),
            user_per_job=host.user_per_job,
            default_sandbox=host.sandbox,
            sandbox_parts=[outgoing.sandbox_part(part) for part in host.isolation],
            draining=host.draining,
            limit_profiles=[
                outgoing.limit_profile(profile, host.profiles.default) for profile in host.profiles.profiles
            ],
            time=outgoing.timestamp(time.time_ns()),
            stale_files=stale,
            supervisor_version=self._mirror.supervisor_version,
        )

    async def Reload(self, _request: pb.ReloadRequest, _context: Context) -> pb.ReloadResponse:
        await self._files.read_again()
        return pb.ReloadResponse(read=self._files.named, stale_files=await self._stale_files())

    async def _stale_files(self) -> list[pb.StaleFile]:
        problems = await self._files.problems()
        return [pb.StaleFile(what=what, problem=outgoing.text(problem)) for what, problem in problems.items()]

    async def Drain(self, _request: pb.DrainRequest, _context: Context) -> pb.DrainResponse:
        drained, _ = await self._link.ask(Drain(CALLER.get(), draining=True), Drained, repeatable=True)
        sees = self._permits.sight(PRINCIPAL.get())
        jobs_seen = ((job_id, self._mirror.get(job_id)) for job_id in drained.active)
        return pb.DrainResponse(active_job_ids=[job_id for job_id, job in jobs_seen if job and sees(job)])

    async def Undrain(self, _request: pb.UndrainRequest, _context: Context) -> pb.UndrainResponse:
        await self._link.ask(Drain(CALLER.get(), draining=False), Drained, repeatable=True)
        return pb.UndrainResponse()

    async def Stream(self, request: pb.StreamRequest, context: Context) -> None:  # type: ignore[override] # writes
        source, form, view = incoming.source(request), incoming.output_format(request), incoming.view(request)
        job = await self._mirror.find(jobs.check_job_id(request.job_id))
        log, offset = Log(job.job_id, job.segment_bytes, source, request.timestamps, form), view.offset
        try:
            async with self._extent(job, log, view, follow=request.follow) as (start, extent):
                HOLD.get().finite = lambda: extent.output_ended
                if view.relative:
                    offset = start
                    await context.write(beginning(log, offset))
                async with aclosing(self._output.pieces(log, offset, extent)) as pieces:
                    async for piece in pieces:
                        async with self._turn(behind=piece.stop < extent.log_bytes):
                            # Before the write: a piece that is under way when the stream is ended still arrives.
                            offset = piece.stop
                            await (context.write(piece.message) if piece.message else asyncio.sleep(0))
        finally:
            _add_trailer(context, RESUME_OFFSET, str(offset))

    def _turn(self, *, behind: bool) -> AbstractAsyncContextManager[None]:
        """Of a stream, for its next piece: what has just been written goes to all who follow at once."""
        return self._turns.turn(PRINCIPAL.get().uri) if behind else nullcontext()

    @asynccontextmanager
    async def _extent(
        self, job: Known, log: Log, view: View, *, follow: bool
    ) -> AsyncIterator[tuple[int, Extent]]:
        """Where a stream begins, and how far the job's log goes: from now on, or now."""
        if follow and not job.output_ended:
            async with self._feeds.follow(job.job_id) as feed:
                # What is there counts, which the feed may not know yet.
                start, _ = await self._locate(job, log, view) if view.relative else (view.offset, feed)
                yield start, feed
        else:
            yield await self._locate(job, log, view)

    async def _locate(self, job: Known, log: Log, view: View) -> tuple[int, Extent]:
        now = job if job.output_ended else await self._fresh(job.job_id)
        extent = Fixed(now.log_bytes, now.output_ended, now.lost_bytes)
        return await self._output.locate(log, view, extent, (job.created_ns, job.ended_ns or time.time_ns()))


def _add_trailer(context: Context, key: str, value: str) -> None:
    context.set_trailing_metadata((*context.trailing_metadata(), (key, value)))


def _is_stopped(job: Known) -> bool:
    """Nothing more will come of a stop."""
    return job.state is State.ENDED or job.stuck


def _never(_job: Known) -> bool:
    return False


def _always(_job: Known) -> bool:
    return True

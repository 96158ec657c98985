"""The gateway as a whole: what it is made of, and its life from the first to the last call."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import sys
from typing import TYPE_CHECKING

import structlog
from grpc import aio

from jobworker.errors import AgentUnavailable
from jobworker.gateway import server, watchdog
from jobworker.gateway.calls import Calls
from jobworker.gateway.certificates import PeerReader
from jobworker.gateway.files import Files
from jobworker.gateway.follow import Feeds
from jobworker.gateway.gate import Gate
from jobworker.gateway.health import Health
from jobworker.gateway.lag import Lag
from jobworker.gateway.link import SupervisorLink
from jobworker.gateway.log import LogLevel
from jobworker.gateway.metrics_sources import Sources
from jobworker.gateway.mirror import Mirror
from jobworker.gateway.output import Output
from jobworker.gateway.permits import Permits
from jobworker.gateway.policies import Policies
from jobworker.gateway.quotas import Quotas
from jobworker.gateway.reports import Reports
from jobworker.gateway.segments import Segments
from jobworker.gateway.servicer import JobWorker
from jobworker.gateway.stdin import StdinWriters
from jobworker.gateway.streams import OpenStreams
from jobworker.gateway.trust import Trust
from jobworker.settings import extras
from jobworker.settings.schema import Settings
from jobworker.wire import service_manager

if TYPE_CHECKING:
    from jobworker.gateway.tracing import OtlpTracer

# So long calls may take to end by themselves when the gateway stops; streams less, which are told where to go on.
_GRACE_SECONDS = 5.0
_STREAMS_SECONDS = 3.0
# So long it takes at the most to learn of which jobs all output is there: who follows one misses what is not known
# by then. A host that is very busy needs more than a second.
_NEWS_SECONDS = 3.0
_MAX_SEGMENTS = 4_096
# Between two looks of the collector at what is young; a stream has some 100, and few become garbage in cycles.
_NEW_OBJECTS = 10_000
_STOPPING = (signal.SIGTERM, signal.SIGINT)

_log = structlog.get_logger()


async def serve(settings: Settings, ready_fd: int | None, *, while_stdin: bool = False) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: all of them; what is for jobs is ignored.
        ready_fd: gets the line HOST:PORT once calls are taken, and is closed.
        while_stdin: end as well when standard input does, a pipe whose other end dies with who started this.

    Raises:
        PkiProblem: the certificates are not to be served with.
        InvalidField: the address cannot be had, or traces not be made here.
    """
    # Not to be ended by one that comes before it can be heeded.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    trust = Trust(settings)
    own = trust.credentials.get()
    stop = _asked_to_stop(while_stdin=while_stdin)
    peers = PeerReader(settings.tls, trust.revocations.get)
    quotas = Quotas(settings.quotas)
    link, streams = SupervisorLink(settings.socket_path), OpenStreams(peers.check)
    mirror, feeds, calls = Mirror(), Feeds(link), Calls()
    policies, reports, lag = Policies(settings, link), Reports(link), Lag()
    permits = Permits(policies, mirror, settings.isolation.default)
    tracer = _tracer(settings) if settings.tracing.endpoint else None
    gate = Gate(peers, quotas, permits, streams, calls, reports, tracer)
    link.listen(LogLevel(settings.log_level).apply)
    files = Files(settings, trust, policies, link, mirror)
    grpc_server = _assemble(trust, gate, link, mirror, feeds, policies, files)
    told = Sources(link, mirror, feeds, calls, quotas, trust, policies, lag)
    scraped = await _serve_metrics(settings, told) if settings.metrics.listen else ""
    # Before it can be called, since that takes some tenths of a second.
    _collect_seldom()
    address = server.bind(grpc_server, settings.listen, trust.credentials)
    await grpc_server.start()
    files.on_hangup()
    _log.info("serving", address=address, dev_certificates=own.dev, metrics=scraped)
    _report(ready_fd, address)
    async with asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(link.run())
        reporting = tasks.create_task(reports.run())
        # Should the server end by itself, so does the gateway, to be started again.
        tasks.create_task(grpc_server.wait_for_termination())
        others = [tasks.create_task(watchdog.keep_alive())]
        if scraped:
            others.append(tasks.create_task(lag.run()))
        await stop.wait()
        service_manager.tell("STOPPING=1")
        await _drain(grpc_server, feeds, streams)
        reporting.cancel()
        await reports.finish()
        if tracer:
            await tracer.finish()
        for task in (keeping, *others):
            task.cancel()


async def _serve_metrics(settings: Settings, told: Sources) -> str:
    # prometheus_client is 2 MiB, which only those pay who want metrics.
    from jobworker.gateway import metrics_server  # noqa: PLC0415
    from jobworker.gateway.metrics import AgentMetrics  # noqa: PLC0415

    return await metrics_server.serve(settings, told.trust, AgentMetrics(told, settings.metrics.job_series))


def _tracer(settings: Settings) -> OtlpTracer:
    extras.check(settings)
    # It is 5 MiB, and need not be installed.
    from jobworker.gateway.tracing import OtlpTracer  # noqa: PLC0415

    return OtlpTracer(settings.tracing)


def _asked_to_stop(*, while_stdin: bool) -> asyncio.Event:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    for number in _STOPPING:
        # Not with the loop's own handlers, which go with the loop: see `_drain`.
        signal.signal(number, lambda _number, _frame: loop.call_soon_threadsafe(stop.set))

    def stdin_ended() -> None:
        # It stays readable.
        loop.remove_reader(sys.stdin.fileno())
        stop.set()

    if while_stdin:
        loop.add_reader(sys.stdin.fileno(), stdin_ended)
    return stop


def _assemble(
    trust: Trust,
    gate: Gate,
    link: SupervisorLink,
    mirror: Mirror,
    feeds: Feeds,
    policies: Policies,
    files: Files,
) -> aio.Server:
    health, stdin = Health(), StdinWriters(link)
    # The policy first: what comes with it is judged by it.
    link.listen(policies.apply, mirror.apply, feeds.apply, stdin.apply, health.apply)
    files_per_segment = 2
    output = Output(Segments(link, min(_raise_file_limit() // 2 // files_per_segment, _MAX_SEGMENTS)))
    jobs = JobWorker(link, mirror, feeds, output, stdin, gate.permits, trust, files)
    return server.make(gate, jobs, health)


def _raise_file_limit() -> int:
    """Take as many open files as this process may have; how many that is. Connections get the other half."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _collect_seldom() -> None:
    """Have the collector of cycles leave alone what has come to stay, and look at the rest less often.

    Nothing else goes on meanwhile: for all that a thousand followers need, and finding nothing, it took 70 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)


def _report(ready_fd: int | None, address: str) -> None:
    if ready_fd is not None:
        with open(ready_fd, "w", encoding="ascii") as ready:
            ready.write(f"{address}\n")


async def _drain(grpc_server: aio.Server, feeds: Feeds, streams: OpenStreams) -> None:
    """End streams so that clients know where to go on, then let the other calls finish."""
    _log.info("stopping")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(feeds.catch_up(), _NEWS_SECONDS)
    streams.end_all(AgentUnavailable("the gateway is stopping"), patience=_STREAMS_SECONDS)
    await grpc_server.stop(_GRACE_SECONDS)
    # It is done; a second signal must not make it look as if it had been killed.
    for number in (*_STOPPING, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _log.info("stopped")

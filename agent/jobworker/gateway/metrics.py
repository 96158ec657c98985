"""The agent's state as Prometheus metrics, put together when it is scraped.

By default no label holds a job's id, and none ever a principal: the number of series is bounded by the code.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

import jobworker
from jobworker.errors import JobNotFound, JobWorkerError
from jobworker.gateway.calls import BOUNDS, Calls
from jobworker.gateway.lag import LAG_BOUNDS, Lag
from jobworker.gateway.metrics_sources import Sources
from jobworker.gateway.metrics_table import METRICS, Kind
from jobworker.gateway.mirror import MirrorStatistics
from jobworker.gateway.quotas import Lane, Quotas
from jobworker.gateway.trust import Trust
from jobworker.histogram import Distribution, Histogram
from jobworker.jobs import EndReason, JobRecord
from jobworker.wire.measures import ROUND_BOUNDS, RUN_BOUNDS, START_BOUNDS, Life, Totals
from jobworker.wire.messages import InspectJob, JobReply, Measure, Measures

_NS, _USEC = 1_000_000_000, 1_000_000
# Whoever scrapes gives up after ten seconds by default, and the metrics without the supervisor's are worth having.
_PATIENCE_SECONDS = 2.0

Labels: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Spread:
    bounds: tuple[float, ...]
    of: Distribution


Value: TypeAlias = float | _Spread
Values: TypeAlias = Iterator[tuple[str, Mapping[Labels, Value]]]


class AgentMetrics(Collector):
    """Reads the gateway's statistics, and asks for the supervisor's.

    Args:
        job_series: so many running jobs have series of their own, the oldest.
    """

    def __init__(self, sources: Sources, job_series: int) -> None:
        self._of = sources
        self._job_series = job_series
        # What the supervisor said last: counters do not vanish while it is being restarted.
        self._measures: Measures | None = None
        self._jobs: tuple[JobRecord, ...] = ()
        # However many scrape, the supervisor is asked by one.
        self._turn = asyncio.Lock()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    async def scrape(self) -> bytes:
        """All metrics in the text format."""
        async with self._turn:
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await self._ask()
            except (JobWorkerError, TimeoutError):
                self._jobs = ()
            return generate_latest(self._registry)

    async def _ask(self) -> None:
        link = self._of.link
        if not link.connected:
            self._jobs = ()
            return
        self._measures, _ = await link.ask(Measure(), Measures, repeatable=True)
        # One by one: the supervisor has other things to do in between.
        jobs = []
        for job_id in self._of.mirror.oldest_active(self._job_series):
            with contextlib.suppress(JobNotFound):
                reply, _ = await link.ask(InspectJob(job_id), JobReply, repeatable=True)
                jobs.append(reply.record)
        self._jobs = tuple(job for job in jobs if not job.ended_ns)

    def collect(self) -> Iterator[Metric]:
        for name, values in self._values():
            yield _family(name, values)

    def _values(self) -> Values:
        yield "jobworker_build_info", {(jobworker.__version__,): 1}
        yield from _of_mirror(self._of.mirror.statistics())
        if self._measures:
            yield from _of_totals(self._measures.totals)
        yield from _of_life(self._measures.life if self._measures else None, self._of.lag)
        yield from _of_calls(self._of.calls)
        yield from _of_quotas(self._of.quotas)
        yield "jobworker_followers", {(): self._of.feeds.followers}
        yield from _of_trust(self._of.trust)
        yield "jobworker_policy_stale", {(): bool(self._of.policies.problem)}
        if self._job_series:
            yield from _of_single(self._jobs)
            without = max(0, self._of.mirror.active() - self._job_series)
            yield "jobworker_jobs_without_series", {(): without}


def _of_mirror(seen: MirrorStatistics) -> Values:
    if seen.host:
        yield "jobworker_host_info", {(seen.host.cgroup_mode,): 1}
        yield "jobworker_draining", {(): seen.host.draining}
        yield "jobworker_limits_stale", {(): bool(seen.host.limits_problem)}
    yield "jobworker_jobs", {(state.value.lower(),): number for state, number in seen.jobs.items()}
    yield "jobworker_supervisor_connects_total", {(): seen.connects}
    yield "jobworker_supervisor_up", {(): seen.synced}


def _of_totals(totals: Totals) -> Values:
    ended = {each.reason: each.jobs for each in totals.ended}
    yield "jobworker_jobs_started_total", {(): totals.started}
    yield "jobworker_job_start_failures_total", {(): totals.start_failures}
    yield "jobworker_jobs_ended_total", {(reason.value.lower(),): ended.get(reason, 0) for reason in EndReason}
    yield "jobworker_job_start_duration_seconds", {(): _Spread(START_BOUNDS, totals.starting)}
    yield "jobworker_job_run_duration_seconds", {(): _Spread(RUN_BOUNDS, totals.running)}
    yield "jobworker_log_bytes_total", {(): totals.log_bytes}
    yield "jobworker_log_lost_bytes_total", {(): totals.lost_bytes}
    yield "jobworker_log_gaps_total", {(): totals.log_gaps}
    yield "jobworker_limits_restored_total", {(): totals.limits_restored}
    yield "jobworker_cgroups_left_total", {(): totals.cgroups_left}
    yield "jobworker_supervisor_starts_total", {("upgrade",): totals.upgrades, ("other",): totals.lives}


def _of_life(life: Life | None, lag: Lag) -> Values:
    delays: dict[Labels, Value] = {("gateway",): _Spread(LAG_BOUNDS, lag.late.snapshot())}
    if life:
        delays["supervisor",] = _Spread(ROUND_BOUNDS, life.rounds)
        took = {("serving",): life.serving_seconds, ("whole",): life.whole_seconds}
        yield "jobworker_recovery_seconds", {until: seconds for until, seconds in took.items() if seconds}
    yield "jobworker_loop_delay_seconds", delays


def _of_calls(calls: Calls) -> Values:
    yield "jobworker_rpcs_open", {(method,): number for method, number in calls.open.items()}
    yield "jobworker_rpcs_total", dict(calls.by_code.items())
    yield "jobworker_denials_total", {(reason,): number for reason, number in calls.denials.items()}
    yield "jobworker_rpc_duration_seconds", _spreads(calls.durations)


def _spreads(by_method: Mapping[str, Histogram]) -> Mapping[Labels, Value]:
    return {(method,): _Spread(BOUNDS, durations.snapshot()) for method, durations in by_method.items()}


def _of_quotas(quotas: Quotas) -> Values:
    yield "jobworker_streams_open", {(): quotas.under_way[Lane.STREAMS]}
    yield "jobworker_quota_refusals_total", {(quota,): number for quota, number in quotas.refused.items()}


def _of_trust(trust: Trust) -> Values:
    own, crl = trust.credentials.get(), trust.revocations.get().ends
    ends: dict[Labels, Value] = {("agent",): own.expires_ns / _NS, ("ca",): own.ca_expires_ns / _NS}
    if crl is not None:
        ends["crl",] = crl
    yield "jobworker_certificate_expiry_timestamp_seconds", ends
    yield "jobworker_trust_stale", {(): len(trust.problems)}


def _of_single(jobs: tuple[JobRecord, ...]) -> Values:
    used = {(job.job_id,): job for job in jobs}
    yield "jobworker_job_cpu_seconds_total", {key: job.usage.cpu_usec / _USEC for key, job in used.items()}
    yield "jobworker_job_memory_bytes", {key: job.usage.memory_bytes for key, job in used.items()}
    yield "jobworker_job_processes", {key: job.usage.processes for key, job in used.items()}
    read: dict[Labels, Value] = {(job.job_id, "read"): job.usage.io_read_bytes for job in jobs}
    written: dict[Labels, Value] = {(job.job_id, "written"): job.usage.io_written_bytes for job in jobs}
    yield "jobworker_job_io_bytes_total", read | written
    yield "jobworker_job_log_bytes_total", {key: job.log_bytes for key, job in used.items()}


def _family(name: str, values: Mapping[Labels, Value]) -> Metric:
    """The values of one metric as prometheus_client has them, which puts some endings of names there by itself."""
    described = METRICS[name]
    match described.kind:
        case Kind.INFO:
            info = InfoMetricFamily(name.removesuffix("_info"), described.text, labels=())
            for labels in values:
                info.add_metric((), dict(zip(described.labels, labels, strict=True)))
            return info
        case Kind.HISTOGRAM:
            histogram = HistogramMetricFamily(name, described.text, labels=described.labels)
            for labels, value in values.items():
                if isinstance(value, _Spread):
                    histogram.add_metric(labels, _buckets(value), value.of.seconds)
            return histogram
        case Kind.COUNTER | Kind.GAUGE:
            cls = CounterMetricFamily if described.kind is Kind.COUNTER else GaugeMetricFamily
            numbers = cls(name, described.text, labels=described.labels)
            for labels, value in values.items():
                if not isinstance(value, _Spread):
                    numbers.add_metric(labels, value)
            return numbers


def _buckets(spread: _Spread) -> list[tuple[str, float]]:
    names = (*map(str, spread.bounds), "+Inf")
    counts = spread.of.counts or (0,) * len(names)
    return list(zip(names, accumulate(counts), strict=True))

"""The agent's state as Prometheus metrics, put together when it is scraped.

No label holds a job's id or a principal: the number of series is bounded by the code.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

import jobworker
from jobworker.gateway.calls import BOUNDS, Calls, Durations
from jobworker.gateway.mirror import Mirror, MirrorStatistics
from jobworker.gateway.policies import Policies
from jobworker.gateway.quotas import Lane, Quotas
from jobworker.gateway.trust import Trust

_NS = 1_000_000_000


class AgentMetrics(Collector):
    """Reads the gateway's statistics."""

    def __init__(self, mirror: Mirror, calls: Calls, quotas: Quotas, trust: Trust, policies: Policies) -> None:
        self._mirror = mirror
        self._calls = calls
        self._quotas = quotas
        self._trust = trust
        self._policies = policies

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("jobworker_build", "Version of the gateway.", {"version": jobworker.__version__})
        yield from _of_jobs(self._mirror.statistics())
        yield from _of_calls(self._calls)
        yield from _of_quotas(self._quotas)
        yield from _of_trust(self._trust)
        told = "1 if the policy file has changed into what cannot be used, and the last good one is in force."
        yield GaugeMetricFamily("jobworker_policy_stale", told, bool(self._policies.problem))


def _of_trust(trust: Trust) -> Iterator[Metric]:
    own = trust.credentials.get()
    ends = GaugeMetricFamily(
        "jobworker_certificate_expiry_timestamp_seconds",
        "When the certificate or revocation list in use ends, in Unix time; of several the first.",
        labels=["certificate"],
    )
    ends.add_metric(["agent"], own.expires_ns / _NS)
    ends.add_metric(["ca"], own.ca_expires_ns / _NS)
    if (crl := trust.revocations.get().ends) is not None:
        ends.add_metric(["crl"], crl)
    yield ends
    told = "Of certificates and revocations, how many have changed into what cannot be used."
    yield GaugeMetricFamily("jobworker_trust_stale", told, trust.stale)


def _of_jobs(seen: MirrorStatistics) -> Iterator[Metric]:
    if seen.host:
        mode = {"cgroup_mode": seen.host.cgroup_mode}
        yield InfoMetricFamily("jobworker_host", "The host as the supervisor found it.", mode)
        yield GaugeMetricFamily("jobworker_draining", "Whether no new jobs are taken.", seen.host.draining)
        told = "1 if the limits file has changed into what cannot be used, and the last good one is in force."
        yield GaugeMetricFamily("jobworker_limits_stale", told, bool(seen.host.limits_problem))
    jobs = GaugeMetricFamily("jobworker_jobs", "Jobs that exist, by state.", labels=["state"])
    for state, number in seen.jobs.items():
        jobs.add_metric([state.value.lower()], number)
    yield jobs
    yield CounterMetricFamily("jobworker_jobs_started", "Jobs that were made.", seen.seen)
    ended = CounterMetricFamily("jobworker_jobs_ended", "Jobs that ended, by reason.", labels=["reason"])
    for reason, number in seen.ended.items():
        ended.add_metric([reason.value.lower()], number)
    yield ended
    yield CounterMetricFamily("jobworker_log_bytes", "Output that jobs have written.", seen.log_bytes)
    yield CounterMetricFamily("jobworker_log_lost_bytes", "Output that the disk did not take.", seen.lost_bytes)
    restored = "Limits of jobs that were set again, since others on the host had changed them."
    yield CounterMetricFamily("jobworker_limits_restored", restored, seen.limits_restored)
    yield CounterMetricFamily("jobworker_supervisor_connects", "Connections to the supervisor.", seen.connects)
    yield GaugeMetricFamily("jobworker_supervisor_up", "Whether the supervisor is there and in step.", seen.synced)


def _of_calls(calls: Calls) -> Iterator[Metric]:
    opened = GaugeMetricFamily("jobworker_rpcs_open", "Calls under way, streams included.", labels=["method"])
    for method, number in calls.open.items():
        opened.add_metric([method], number)
    yield opened
    ended = CounterMetricFamily("jobworker_rpcs", "Calls that ended.", labels=["method", "code"])
    for (method, code), number in calls.by_code.items():
        ended.add_metric([method, code], number)
    yield ended
    denials = CounterMetricFamily("jobworker_denials", "Calls that were denied.", labels=["reason"])
    for reason, number in calls.denials.items():
        denials.add_metric([reason], number)
    yield denials
    lasted = HistogramMetricFamily("jobworker_rpc_duration_seconds", "How long calls took.", labels=["method"])
    for method, durations in calls.durations.items():
        lasted.add_metric([method], _buckets(durations), durations.seconds)
    yield lasted


def _of_quotas(quotas: Quotas) -> Iterator[Metric]:
    streams = quotas.under_way[Lane.STREAMS]
    yield GaugeMetricFamily("jobworker_streams_open", "Streams and Watches that are open.", streams)
    told = "Calls that were refused, by the quota of their principal, or by a bound that all share (agent)."
    refused = CounterMetricFamily("jobworker_quota_refusals", told, labels=["quota"])
    for quota, number in quotas.refused.items():
        refused.add_metric([quota], number)
    yield refused


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    names = (*map(str, BOUNDS), "+Inf")
    return list(zip(names, accumulate(durations.counts), strict=True))

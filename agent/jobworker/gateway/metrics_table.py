"""Every metric there is: its name as Prometheus has it, what it means, and its labels."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


class Kind(enum.Enum):
    """The types of the exposition format; an `info` is a gauge that is always 1."""

    INFO = "info"
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Described:
    """One metric.

    Attributes:
        text: a sentence.
        labels: none of which holds a principal, or but for those of single jobs a job's id.
    """

    kind: Kind
    text: str
    labels: tuple[str, ...] = ()


def _info(text: str, *labels: str) -> Described:
    return Described(Kind.INFO, text, labels)


def _gauge(text: str, *labels: str) -> Described:
    return Described(Kind.GAUGE, text, labels)


def _counter(text: str, *labels: str) -> Described:
    return Described(Kind.COUNTER, text, labels)


def _histogram(text: str, *labels: str) -> Described:
    return Described(Kind.HISTOGRAM, text, labels)


METRICS: Mapping[str, Described] = MappingProxyType(
    {
        # The agent and its host.
        "jobworker_build_info": _info("Version of the gateway.", "version"),
        "jobworker_host_info": _info("The host as the supervisor found it.", "cgroup_mode"),
        "jobworker_draining": _gauge("Whether no new jobs are taken."),
        "jobworker_supervisor_up": _gauge("Whether the supervisor is there and in step."),
        "jobworker_supervisor_connects_total": _counter("The gateway's connections to the supervisor."),
        "jobworker_supervisor_starts_total": _counter(
            "Starts of a supervisor, by cause: an upgrade in place, or any other, a death of the one before too.",
            "cause",
        ),
        "jobworker_recovery_seconds": _gauge(
            "How long the present supervisor took until it served its running jobs again, and until it knew all.",
            "until",
        ),
        "jobworker_loop_delay_seconds": _histogram(
            "What comes waits so long: rounds of the supervisor's loop, and how late the gateway's timer was.",
            "process",
        ),
        # Jobs.
        "jobworker_jobs": _gauge("Jobs that exist, by state.", "state"),
        "jobworker_jobs_started_total": _counter("Jobs whose command was executed."),
        "jobworker_job_start_failures_total": _counter("Starts that were allowed, and came to nothing."),
        "jobworker_jobs_ended_total": _counter("Jobs that ended, by reason.", "reason"),
        "jobworker_job_start_duration_seconds": _histogram(
            "From a start's arrival at the supervisor until its command was executed."
        ),
        "jobworker_job_run_duration_seconds": _histogram("From a job's start to its end, if that was seen."),
        "jobworker_log_bytes_total": _counter("Output that jobs have written."),
        "jobworker_log_lost_bytes_total": _counter("Output that the disk did not take."),
        "jobworker_log_gaps_total": _counter("How often output of a job began to be lost."),
        "jobworker_limits_restored_total": _counter(
            "How often limits of a job were set again, since others on the host had changed them."
        ),
        "jobworker_cgroups_left_total": _counter("Cgroups of ended jobs that could not be removed."),
        "jobworker_limits_stale": _gauge(
            "1 if the limits file has changed into what cannot be used, and the last good one is in force."
        ),
        # Calls.
        "jobworker_rpcs_open": _gauge("Calls under way, streams included.", "method"),
        "jobworker_rpcs_total": _counter("Calls that ended.", "method", "code"),
        "jobworker_rpc_duration_seconds": _histogram("How long calls took.", "method"),
        "jobworker_denials_total": _counter("Calls that were denied.", "reason"),
        "jobworker_quota_refusals_total": _counter(
            "Calls that were refused, by the quota of their principal, or by a bound that all share (agent).",
            "quota",
        ),
        "jobworker_streams_open": _gauge("Streams and Watches that are open."),
        "jobworker_followers": _gauge("Streams among them that are told of a job's output as it comes."),
        # Trust.
        "jobworker_certificate_expiry_timestamp_seconds": _gauge(
            "When the certificate or revocation list in use ends, in Unix time; of several the first.",
            "certificate",
        ),
        "jobworker_trust_stale": _gauge(
            "Of certificates and revocations, how many have changed into what cannot be used."
        ),
        "jobworker_policy_stale": _gauge(
            "1 if the policy file has changed into what cannot be used, and the last good one is in force."
        ),
        # Single jobs.
        "jobworker_job_cpu_seconds_total": _counter("CPU time of a running job.", "job_id"),
        "jobworker_job_memory_bytes": _gauge("Memory that is charged to a running job.", "job_id"),
        "jobworker_job_processes": _gauge("Processes and threads of a running job.", "job_id"),
        "jobworker_job_io_bytes_total": _counter(
            "What a running job has read from disks and written to them.", "job_id", "direction"
        ),
        "jobworker_job_log_bytes_total": _counter("Output that a running job has written.", "job_id"),
        "jobworker_jobs_without_series": _gauge(
            "Running jobs beyond metrics.job_series, which have no series of their own."
        ),
    }
)

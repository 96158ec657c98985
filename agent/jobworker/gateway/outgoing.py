"""The agent's own types as messages of the contract."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from jobworker import jobs, limits
from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.sandbox import Applied
from jobworker.wire.host import LimitSupport, PartSupport

_STATES = {state: job_pb2.JobState.Value(f"JOB_STATE_{state.value}") for state in jobs.State}
_REASONS: dict[jobs.EndReason | None, job_pb2.EndReason.ValueType] = {
    None: job_pb2.END_REASON_UNSPECIFIED,
    **{reason: job_pb2.EndReason.Value(f"END_REASON_{reason.value}") for reason in jobs.EndReason},
}
_ENFORCEMENTS = {kind: job_pb2.Enforcement.Value(f"ENFORCEMENT_{kind.value}") for kind in limits.Enforcement}


def job(record: jobs.JobRecord) -> job_pb2.Job:
    """A job as clients see it."""
    return job_pb2.Job(
        id=record.job_id,
        state=_STATES[record.state],
        end_reason=_REASONS[record.end_reason],
        exit_code=record.exit_code,
        signal=record.signal,
        detail=text(record.detail),
        pid=record.pid,
        uid=record.uid,
        created_at=timestamp(record.created_ns),
        started_at=timestamp(record.started_ns),
        ended_at=timestamp(record.ended_ns),
        command=text(record.command),
        args=[text(arg) for arg in record.args],
        env_names=[text(name) for name in record.env_names],
        workdir=text(record.workdir),
        principal=record.principal,
        labels=dict(record.labels),
        timeout=_duration(record.timeout_ms * 1000) if record.timeout_ms else None,
        limits=[_limit(status) for status in record.limits],
        usage=_usage(record.usage),
        log_path=text(record.log_path),
        log_bytes=record.log_bytes,
        output_ended=record.output_ended,
        stuck=record.stuck,
        lost_bytes=record.lost_bytes,
        sandbox=_sandbox(record.sandbox),
        limits_restored=record.limits_restored,
        user=record.user,
        profile=record.profile,
        request_id=record.request_id,
        stdin_open=record.stdin_open,
        stdin_bytes=record.stdin_bytes,
    )


def _limit(status: limits.LimitStatus) -> job_pb2.LimitStatus:
    return job_pb2.LimitStatus(
        name=status.name,
        requested=status.requested,
        value=status.value,
        enforcement=_ENFORCEMENTS[status.enforcement],
        detail=text(status.detail),
    )


def _sandbox(applied: Applied) -> job_pb2.Sandbox | None:
    if not applied.profile:
        return None
    return job_pb2.Sandbox(profile=applied.profile, parts=applied.parts, missing=applied.missing)


def _usage(usage: jobs.Usage) -> job_pb2.Usage:
    return job_pb2.Usage(
        cpu_time=_duration(usage.cpu_usec),
        memory_peak_bytes=usage.memory_peak_bytes,
        oom_kills=usage.oom_kills,
        throttled_time=_duration(usage.throttled_usec),
        io_read_bytes=usage.io_read_bytes,
        io_written_bytes=usage.io_written_bytes,
        memory_bytes=usage.memory_bytes,
        processes=usage.processes,
        cpu_stalled_time=_duration(usage.cpu_stalled_usec),
        memory_stalled_time=_duration(usage.memory_stalled_usec),
        io_stalled_time=_duration(usage.io_stalled_usec),
    )


def limit_support(support: LimitSupport) -> pb.LimitSupport:
    """What the host makes of one kind of limit."""
    return pb.LimitSupport(
        name=support.name,
        enforcement=_ENFORCEMENTS[support.enforcement],
        detail=text(support.detail),
        default_value=support.default,
        maximum=support.maximum,
    )


def limit_profile(profile: limits.LimitProfile, default: str) -> pb.LimitProfile:
    """A profile of limits, which is the default one if that is its name."""
    values = {name: limits.BY_NAME[name].sent(value) for name, value in profile.limits.given()}
    return pb.LimitProfile(name=profile.name, limits=job_pb2.Limits(**values), is_default=profile.name == default)


def sandbox_part(support: PartSupport) -> pb.SandboxPart:
    """What the host makes of one part of the sandbox profiles."""
    return pb.SandboxPart(name=support.part.value, missing_because=text(support.reason))


def timestamp(nanoseconds: int) -> Timestamp | None:
    """Nanoseconds of Unix time; None for 0, which is not yet."""
    if not nanoseconds:
        return None
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)


def _duration(microseconds: int) -> Duration:
    return Duration(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)


def text(text: str) -> str:
    """Text that may stem from bytes that are not UTF-8, such as a path, as a message can hold it."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()

"""Requests of the contract from the vocabulary of jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from jobworker import jobs, limits
from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.errors import InvalidField

# Agents keep offsets in 64 bits with a sign.
MAX_OFFSET = 2**63 - 1
_NOT_TEXT = "holds bytes that are not UTF-8, and a request carries text"
_IN_A_FILE = "; put them into a file"


def start(spec: jobs.JobSpec, idempotency_key: str = "") -> pb.StartRequest:
    """Ask for this job.

    Raises:
        InvalidField: no agent would take it.
    """
    spec.check()
    return pb.StartRequest(
        command=_text("command", spec.command),
        args=[_text(f"args[{i}]", arg, f"argument {i + 1} ", _IN_A_FILE) for i, arg in enumerate(spec.args)],
        env={_text("env", name): _text(f"env[{name}]", value, fix=_IN_A_FILE) for name, value in spec.env},
        workdir=_text("workdir", spec.workdir),
        limits=_limits(spec.limits),
        best_effort=spec.best_effort,
        sandbox=spec.sandbox,
        user=spec.user,
        profile=_text("profile", spec.profile),
        timeout=_duration(spec.timeout_ms) if spec.timeout_ms else None,
        labels=dict(spec.labels),
        idempotency_key=_text("idempotency_key", idempotency_key),
        stdin=spec.stdin,
        stdin_open=spec.stdin_open,
        merge_stderr=spec.merge_stderr,
    )


def stop(job_id: str, signal: str, grace_ms: int, *, force: bool, wait: bool) -> pb.StopRequest:
    """Ask for this stop.

    Raises:
        InvalidField: no agent would take it.
    """
    if not 0 <= grace_ms <= jobs.MAX_GRACE_MS:
        raise InvalidField("grace", f"is not between 0 and {jobs.MAX_GRACE_MS // 1000} s", "10s")
    return pb.StopRequest(
        job_id=_text("job_id", job_id),
        signal=_text("signal", signal),
        grace=_duration(grace_ms),
        force=force,
        no_wait=not wait,
    )


def signal(job_id: str, name: str, *, everyone: bool) -> pb.SignalRequest:
    """Ask for this signal."""
    return pb.SignalRequest(job_id=_text("job_id", job_id), signal=_text("signal", name), all=everyone)


def write_stdin(job_id: str, offset: int | None) -> pb.WriteStdinRequest:
    """Ask to write, without anything yet."""
    return pb.WriteStdinRequest(job_id=_text("job_id", job_id), offset=offset)


def update(job_id: str, asked: limits.Limits, *, force: bool) -> pb.UpdateRequest:
    """Ask for these limits.

    Raises:
        InvalidField: no agent would take them.
    """
    asked.check(alone=False)
    return pb.UpdateRequest(job_id=_text("job_id", job_id), limits=_limits(asked), force=force)


def delete(job_id: str) -> pb.DeleteRequest:
    """Ask for this job to be deleted."""
    return pb.DeleteRequest(job_id=_text("job_id", job_id))


def query(job_id: str) -> pb.QueryRequest:
    """Ask for this job."""
    return pb.QueryRequest(job_id=_text("job_id", job_id))


def listing(
    states: Iterable[jobs.State],
    labels: Mapping[str, str] | None,
    principal: str,
    id_prefix: str,
    created_since_ns: int | None,
    created_until_ns: int | None,
    page_size: int,
) -> pb.ListRequest:
    """Ask for a page of these jobs."""
    return pb.ListRequest(
        states=_state_numbers(states),
        labels=_labels(labels),
        principal=_text("principal", principal),
        id_prefix=_text("id_prefix", id_prefix),
        created_since=_timestamp("created_since", created_since_ns),
        created_until=_timestamp("created_until", created_until_ns),
        page_size=page_size,
    )


def watch(
    job_ids: Iterable[str],
    states: Iterable[jobs.State],
    labels: Mapping[str, str] | None,
    principal: str,
    resume_token: str,
) -> pb.WatchRequest:
    """Ask for changes of these jobs."""
    return pb.WatchRequest(
        job_ids=[_text("job_ids", job_id) for job_id in job_ids],
        states=_state_numbers(states),
        labels=_labels(labels),
        principal=_text("principal", principal),
        resume_token=_text("resume_token", resume_token),
    )


def _state_numbers(states: Iterable[jobs.State]) -> list[job_pb2.JobState.ValueType]:
    return [job_pb2.JobState.Value(f"JOB_STATE_{state.value}") for state in states]


def stream(
    job_id: str,
    *,
    offset: int,
    tail_lines: int | None,
    since_ns: int | None,
    until_ns: int | None,
    follow: bool,
    source: jobs.Source | None,
    timestamps: bool,
    output_format: jobs.OutputFormat,
) -> pb.StreamRequest:
    """Ask for this output.

    Raises:
        InvalidField: no agent would take it.
    """
    check_number("offset", offset)
    if tail_lines is not None:
        check_number("tail_lines", tail_lines, jobs.MAX_TAIL_LINES)
    return pb.StreamRequest(
        job_id=_text("job_id", job_id),
        offset=offset,
        tail_lines=tail_lines,
        since=_timestamp("since", since_ns),
        until=_timestamp("until", until_ns),
        follow=follow,
        source=pb.OutputSource.ValueType(source.value if source else 0),
        timestamps=timestamps,
        # Left out for what was there before the field was: an older agent takes no field that it does not know.
        format=pb.OutputFormat.ValueType(0 if output_format is jobs.OutputFormat.BINARY else output_format.value),
    )


def check_number(field: str, number: int, maximum: int = MAX_OFFSET) -> None:
    """Check that a number is between 0 and `maximum`.

    Raises:
        InvalidField: it is not.
    """
    if not 0 <= number <= maximum:
        raise InvalidField(field, f"is not between 0 and {maximum}", "0")


def _timestamp(field: str, time_ns: int | None) -> Timestamp | None:
    if time_ns is None:
        return None
    timestamp = Timestamp()
    try:
        timestamp.FromNanoseconds(time_ns)
    except ValueError:
        raise InvalidField(field, "is no time of the years 1 to 9999", "2026-01-31T08:00:00Z") from None
    return timestamp


def _limits(asked: limits.Limits) -> job_pb2.Limits:
    values: dict[str, Any] = {name: limits.BY_NAME[name].sent(value) for name, value in asked.given()}
    return job_pb2.Limits(**values)


def _labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    return {_text("labels", key): _text(f"labels[{key}]", value) for key, value in (labels or {}).items()}


def _duration(millis: int) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(millis)
    return duration


def _text(field: str, text: str, what: str = "", fix: str = "") -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidField(field, what + _NOT_TEXT + fix) from None
    return text

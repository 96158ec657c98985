"""Jobs and agents as plain data for `--format json`: numbers in base units, times in RFC 3339 and UTC."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jobworker.errors import ProtocolError

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import Message

    from jobworker.api.v1.job_pb2 import Job, Limits, LimitStatus, Usage
    from jobworker.api.v1.job_worker_service_pb2 import GetAgentInfoResponse, ReloadResponse


def line(value: dict[str, Any]) -> str:
    """One object on one line, in ASCII."""
    return json.dumps(value, separators=(",", ":"))


def job(message: Job) -> dict[str, Any]:
    return {
        "id": message.id,
        "state": enum_name(message, "state"),
        "end_reason": enum_name(message, "end_reason"),
        "exit_code": message.exit_code if message.HasField("exit_code") else None,
        "signal": message.signal if message.HasField("signal") else None,
        "detail": message.detail,
        "pid": message.pid,
        "uid": message.uid,
        "user": message.user,
        "created_at": time(message, "created_at"),
        "started_at": time(message, "started_at"),
        "ended_at": time(message, "ended_at"),
        "command": message.command,
        "args": list(message.args),
        "env_names": list(message.env_names),
        "workdir": message.workdir,
        "principal": message.principal,
        "request_id": message.request_id,
        "labels": dict(message.labels),
        "timeout_seconds": seconds(message.timeout) if message.HasField("timeout") else None,
        "profile": message.profile,
        "limits": {limit.name: _limit(limit) for limit in message.limits},
        "limits_restored": message.limits_restored,
        "usage": _usage(message.usage),
        "log_path": message.log_path,
        "log_bytes": message.log_bytes,
        "lost_bytes": message.lost_bytes,
        "output_ended": message.output_ended,
        "stdin_open": message.stdin_open,
        "stdin_bytes": message.stdin_bytes,
        "stuck": message.stuck,
        "sandbox": {
            "profile": message.sandbox.profile,
            "parts": list(message.sandbox.parts),
            "missing": list(message.sandbox.missing),
        },
    }


def agent(message: GetAgentInfoResponse) -> dict[str, Any]:
    return {
        "version": message.version,
        "supervisor_version": message.supervisor_version,
        "hostname": message.hostname,
        "kernel": message.kernel,
        "cgroup_mode": message.cgroup_mode,
        "cpus": message.cpus,
        "memory_bytes": message.memory_bytes,
        "active_jobs": message.active_jobs,
        "max_active_jobs": message.max_active_jobs,
        "draining": message.draining,
        "user_per_job": message.user_per_job,
        "certificate_expires_at": time(message, "certificate_expires_at"),
        "ca_expires_at": time(message, "ca_expires_at"),
        "crl_expires_at": time(message, "crl_expires_at"),
        "time": time(message, "time"),
        "stale_files": stale_files(message),
        "default_sandbox": message.default_sandbox,
        "sandbox_parts": {part.name: {"missing_because": part.missing_because} for part in message.sandbox_parts},
        "limits": {
            limit.name: {
                "enforcement": enum_name(limit, "enforcement"),
                "detail": limit.detail,
                "default": limit.default_value,
                "maximum": limit.maximum,
            }
            for limit in message.limits
        },
        "limit_profiles": {
            profile.name: {"default": profile.is_default, "limits": limits(profile.limits)}
            for profile in message.limit_profiles
        },
    }


def reloaded(message: ReloadResponse) -> dict[str, Any]:
    return {"read": list(message.read), "stale_files": stale_files(message)}


def stale_files(message: GetAgentInfoResponse | ReloadResponse) -> dict[str, str]:
    """What is wrong with files that are not in force, by what they hold."""
    return {stale.what: stale.problem for stale in message.stale_files}


def limits(message: Limits) -> dict[str, Any]:
    """Those that are asked for, by name."""
    return {field.name: value for field, value in message.ListFields()}


def enum_name(message: Message, field: str) -> str | None:
    """The value's name without its type's prefix; `None` for unspecified, the number of one unknown here."""
    number = getattr(message, field)
    enum_type = message.DESCRIPTOR.fields_by_name[field].enum_type
    if number == 0 or enum_type is None:
        return None
    names = enum_type.values_by_number
    prefix = names[0].name.removesuffix("UNSPECIFIED")
    return names[number].name.removeprefix(prefix) if number in names else str(number)


def time(message: Message, field: str) -> str | None:
    """In RFC 3339; None where it is not told.

    Raises:
        ProtocolError: it is no time.
    """
    if not message.HasField(field):
        return None
    try:
        text: str = getattr(message, field).ToJsonString()
    except ValueError:
        raise ProtocolError(f"{field} is no time of the years 1 to 9999") from None
    return text


def seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _limit(limit: LimitStatus) -> dict[str, Any]:
    return {
        "requested": limit.requested,
        "value": limit.value,
        "enforcement": enum_name(limit, "enforcement"),
        "detail": limit.detail,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "cpu_seconds": seconds(usage.cpu_time),
        "memory_peak_bytes": usage.memory_peak_bytes,
        "oom_kills": usage.oom_kills,
        "throttled_seconds": seconds(usage.throttled_time),
        "io_read_bytes": usage.io_read_bytes,
        "io_written_bytes": usage.io_written_bytes,
        "memory_bytes": usage.memory_bytes,
        "processes": usage.processes,
        "cpu_stalled_seconds": seconds(usage.cpu_stalled_time),
        "memory_stalled_seconds": seconds(usage.memory_stalled_time),
        "io_stalled_seconds": seconds(usage.io_stalled_time),
    }

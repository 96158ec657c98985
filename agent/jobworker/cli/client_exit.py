"""Exit codes of commands that end as a job did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from jobworker.cli import client_json
from jobworker.cli.client_command import ClientCommand
from jobworker.client.failures import CallFailed, WaitTimedOut
from jobworker.program import BY_SIGNAL, INTERRUPTED

if TYPE_CHECKING:
    from jobworker.api.v1.job_pb2 import Job

__all__ = ["INTERRUPTED", "TOOL_FAILED", "ExitsAsJob", "exit_status", "notice_of"]

# As timeout(1) and env(1) have them.
TIMED_OUT, TOOL_FAILED, NOT_EXECUTABLE, NOT_FOUND = 124, 125, 126, 127
_EXEC_CODES = {"ENOENT": NOT_FOUND, "EACCES": NOT_EXECUTABLE, "ENOEXEC": NOT_EXECUTABLE}


class _UsageError(click.UsageError):
    exit_code = TOOL_FAILED


class ExitsAsJob(ClientCommand):
    """Codes of its own, because all others may be the job's."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise _UsageError(error.format_message(), error.ctx) from None

    def invoke(self, ctx: click.Context) -> int:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _UsageError(error.format_message(), error.ctx) from None

    def exit_code(self, error: Exception) -> int:
        if isinstance(error, WaitTimedOut):
            return TIMED_OUT
        if not isinstance(error, CallFailed) or error.metadata.get("step") != "exec":
            return TOOL_FAILED
        return _EXEC_CODES.get(error.metadata.get("errno_name", ""), TOOL_FAILED)


def exit_status(job: Job) -> int:
    """The exit code that tells how the job's main process ended."""
    if job.HasField("exit_code"):
        return job.exit_code
    return BY_SIGNAL + job.signal if job.HasField("signal") else TOOL_FAILED


def notice_of(job: Job) -> str:
    """What the exit code alone does not tell; empty for nothing."""
    limits = {limit.name: limit.requested for limit in job.limits}
    match client_json.enum_name(job, "end_reason"):
        case "OOM_KILLED":
            return f"job {job.id} was killed for going over its memory limit ({limits.get('memory', 'none')})"
        case "TIMED_OUT":
            return f"job {job.id} was stopped at its timeout of {client_json.seconds(job.timeout):g} s"
        case "STOPPED":
            return f"job {job.id} was stopped"
        case "LOST":
            return f"job {job.id} was lost, its end was not seen: {job.detail or 'no more is known'}"
        case _:
            return ""

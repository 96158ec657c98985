"""What `start` and `run` say with `--dry-run`, for one host and for many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from jobworker.cli import client_json, client_text
from jobworker.cli.client_command import as_json, connect

if TYPE_CHECKING:
    from jobworker.api.v1.job_worker_service_pb2 import StartResponse
    from jobworker.jobs import JobSpec


def show(spec: JobSpec, idempotency_key: str) -> None:
    """Ask the agent what would become of this job, and say so.

    Raises:
        JobWorkerError: it would not be started, or it cannot be asked.
    """
    with connect() as client:
        found = client.plan(spec, idempotency_key=idempotency_key)
    click.echo(client_json.line(plain(found)) if as_json() else client_text.plan(found))


def plain(found: StartResponse) -> dict[str, Any]:
    """As `--format json` has it."""
    return {"dry_run": True, "rule": found.rule, "job": client_json.job(found.job)}

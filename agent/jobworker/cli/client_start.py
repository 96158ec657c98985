"""`worker-client start`."""

from __future__ import annotations

import os
from typing import Any

import click

from jobworker.cli import client_json, client_plan
from jobworker.cli.client_command import ClientCommand, as_json, connect
from jobworker.cli.client_spec import CONTEXT_SETTINGS, job_options, spec_of

_HELP = """Start a job and print its id.

The job goes on when this command has ended. Its command is looked up in the PATH that you give it, or in the
host's default path. From the command on, everything is the job's own.

\b
worker-client start --cpu 50% --memory 64M --label team=build -- make all
worker-client start --env LANG=C.UTF-8 --timeout 10m ./report.sh --full
worker-client start --dry-run --memory 64M -- make all

With --dry-run nothing is started: what the agent would start is shown, with the limits as its host would enforce
them and the rule of its policy that allows it, or why it would not. That the command exists only a start shows.
"""


@click.command("start", cls=ClientCommand, help=_HELP, context_settings=CONTEXT_SETTINGS)
@job_options
def start(words: tuple[str, ...], *, dry_run: bool, **options: Any) -> None:
    spec = spec_of(words, options, os.environ)
    if dry_run:
        client_plan.show(spec, options["idempotency_key"])
        return
    with connect() as client:
        job = client.start(spec, idempotency_key=options["idempotency_key"])
    click.echo(client_json.line(client_json.job(job)) if as_json() else job.id)

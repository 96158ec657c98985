"""`worker-client start`."""

from __future__ import annotations

import os
from typing import Any

import click

from jobworker.cli import client_json
from jobworker.cli.client_command import ClientCommand, as_json, connect
from jobworker.cli.client_spec import CONTEXT_SETTINGS, job_options, spec_of

_HELP = """Start a job and print its id.

The job goes on when this command has ended. Its command is looked up in the PATH that you give it, or in the
host's default path. From the command on, everything is the job's own.

\b
worker-client start --cpu 50% --memory 64M --label team=build -- make all
worker-client start --env LANG=C.UTF-8 --timeout 10m ./report.sh --full
"""


@click.command("start", cls=ClientCommand, help=_HELP, context_settings=CONTEXT_SETTINGS)
@job_options
def start(words: tuple[str, ...], **options: Any) -> None:
    spec = spec_of(words, options, os.environ)
    with connect() as client:
        job = client.start(spec, idempotency_key=options["idempotency_key"])
    click.echo(client_json.line(client_json.job(job)) if as_json() else job.id)

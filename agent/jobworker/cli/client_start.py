"""`worker-client start`."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from jobworker.cli import client_json, client_plan
from jobworker.cli.client_command import ClientCommand, as_json, connect
from jobworker.cli.client_spec import CONTEXT_SETTINGS, job_options, spec_of
from jobworker.cli.client_stdin import input_of
from jobworker.cli.progress import progress

_HELP = """Start a job and print its id.

The job goes on when this command has ended, which with a larger --stdin is when the job has got all of that. Its
command is looked up in the PATH that you give it, or in the host's default path. From the command on, everything
is the job's own.

\b
worker-client start --cpu 50% --memory 64M --label team=build -- make all
worker-client start --env LANG=C.UTF-8 --timeout 10m ./report.sh --full
worker-client start --stdin dump.sql -- psql shop
worker-client start --dry-run --memory 64M -- make all

With --dry-run nothing is started: what the agent would start is shown, with the limits as its host would enforce
them and the rule of its policy that allows it, or why it would not. That the command exists only a start shows.
"""


@click.command("start", cls=ClientCommand, help=_HELP, context_settings=CONTEXT_SETTINGS)
@job_options
def start(words: tuple[str, ...], *, dry_run: bool, **options: Any) -> None:
    reads = input_of(options, live=False)
    spec = reads.of(spec_of(words, {**options, "stdin": None}, os.environ))
    if dry_run:
        client_plan.show(spec, options["idempotency_key"])
        return
    with connect() as client:
        job = client.start(spec, idempotency_key=options["idempotency_key"])
        click.echo(client_json.line(client_json.job(job)) if as_json() else job.id)
        # Whoever waits for the id may wait for less than that.
        sys.stdout.flush()
        with progress() as line:
            reads.write(client, job.id, line)

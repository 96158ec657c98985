"""`worker-client update`."""

from __future__ import annotations

from typing import Any

import click

from jobworker import jobs
from jobworker.cli import client_json, client_offers, client_text
from jobworker.cli.client_command import ClientCommand, as_json, connect
from jobworker.cli.client_spec import limit_options, limits_of

_HELP = """Give a running job new limits.

Only the limits that are given change, and all of them or none: if the agent refuses one, the job keeps what it
has. They can be no more than the job could be started with now. ID is a job's id, or the beginning of it: four
characters or more.

\b
worker-client update k7f3 --memory 512M --cpu 50%
worker-client update k7f3 --pids 200 --format json | jq .limits.pids
"""


@click.command("update", cls=ClientCommand, help=_HELP)
@limit_options
@click.option("--force", is_flag=True, help="Limit --memory also to less than the job has now; that may end it.")
@click.argument("job_id", metavar="ID", shell_complete=client_offers.jobs(*jobs.ACTIVE))
def update(job_id: str, *, force: bool, **options: Any) -> None:
    limits = limits_of(options)
    names = [name for name, _ in limits.given()]
    if not names:
        raise click.UsageError("give a limit that is to change, such as --memory 512M")
    with connect() as client:
        job = client.update(client.resolve(job_id), limits, force=force)
    click.echo(client_json.line(client_json.job(job)) if as_json() else client_text.limits_of(job, names))

"""`worker-client signal` and `delete`."""

from __future__ import annotations

import click

from jobworker import jobs
from jobworker.cli import client_json, client_offers, client_text
from jobworker.cli.client_command import ClientCommand, as_json, complain, connect
from jobworker.errors import JobWorkerError

_SIGNAL_HELP = """Send one signal to a job's main process, or with --all to each of its processes.

Nothing else happens: to end a job, use `stop`, which sees to it that nothing is left. ID is a job's id, or the
beginning of it: four characters or more.

\b
worker-client signal k7f3 HUP
worker-client signal k7f3 STOP --all
worker-client signal k7f3 CONT --all
"""

_DELETE_HELP = """Remove ended jobs: their records, their output, and their working directories.

There is no way back. A job that has not ended is left as it is; stop it first. ID is a job's id, or the beginning
of it: four characters or more.

\b
worker-client delete k7f3 b1cd
worker-client stop k7f3 && worker-client delete k7f3

\b
Exit codes: as of every command; of several that could not be removed, that of the last.
"""


@click.command("signal", cls=ClientCommand, help=_SIGNAL_HELP)
@click.option("--all", "everyone", is_flag=True, help="To each process of the job.")
@click.argument("job_id", metavar="ID", shell_complete=client_offers.jobs(*jobs.ACTIVE))
@click.argument("name", metavar="SIGNAL", shell_complete=client_offers.signals)
def signal(job_id: str, name: str, *, everyone: bool) -> None:
    with connect() as client:
        job = client.signal(client.resolve(job_id), name, everyone=everyone)
    line = client_json.line(client_json.job(job)) if as_json() else f"{job.id}  {client_text.status(job)}"
    click.echo(line)


@click.command("delete", cls=ClientCommand, help=_DELETE_HELP)
@click.argument(
    "job_ids", metavar="ID...", nargs=-1, required=True, shell_complete=client_offers.jobs(jobs.State.ENDED)
)
def delete(job_ids: tuple[str, ...]) -> None:
    failure: JobWorkerError | None = None
    with connect() as client:
        for text in job_ids:
            try:
                whole = client.resolve(text)
                client.delete(whole)
            except JobWorkerError as error:
                # What can be removed is, whatever cannot.
                if failure:
                    complain(str(failure))
                failure = error
            else:
                click.echo(client_json.line({"id": whole, "removed": True}) if as_json() else f"{whole}  REMOVED")
    if failure:
        raise failure

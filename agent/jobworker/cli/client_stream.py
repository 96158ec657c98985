"""`worker-client stream`."""

from __future__ import annotations

import sys

import click

from jobworker.cli import client_json, client_offers
from jobworker.cli.client_command import ClientCommand, as_json, connect
from jobworker.cli.client_output import Sink, plain, stamped
from jobworker.cli.client_time import moment
from jobworker.jobs import Source

_HELP = """Write a job's output. Also called `logs`.

The bytes come as the job wrote them. Only on a terminal, control sequences other than colours are made visible.
A broken connection is resumed where it broke. ID is a job's id, or the beginning of it: four characters or more.

\b
worker-client stream k7f3 --follow
worker-client stream k7f3 --tail 20 --follow
worker-client stream k7f3 --since 10m --timestamps
worker-client stream k7f3 --since 2026-01-31T08:00:00Z --until 2026-01-31T09:00:00Z
worker-client stream k7f3 --stdout > build.log
worker-client stream k7f3 --format json

T is a time with its zone, or a duration back from now. The job's host notes times, exact to 10 ms.
With `--format json` each line is an object: `type` is chunk, gap or end, and `data` is in base 64.
"""


@click.command("stream", cls=ClientCommand, help=_HELP)
@click.option("--follow", "-f", is_flag=True, help="Go on with new output until it has ended.")
@click.option("--offset", metavar="N", type=click.IntRange(min=0), default=0, help="Begin at this byte.")
@click.option(
    "--tail", "-n", metavar="N", type=click.IntRange(min=0), help="Begin this many lines before the end."
)
@click.option("--since", metavar="T", help="Begin at this time, or this long ago.")
@click.option("--until", metavar="T", help="End at this time, or this long ago.")
@click.option("--stdout", is_flag=True, help="Only what the job wrote to its standard output.")
@click.option("--stderr", is_flag=True, help="Only what it wrote to its standard error.")
@click.option("--timestamps", "-t", is_flag=True, help="Put before each line when it was written.")
@click.argument("job_id", metavar="ID", shell_complete=client_offers.jobs())
def stream(
    job_id: str,
    *,
    follow: bool,
    offset: int,
    tail: int | None,
    since: str | None,
    until: str | None,
    stdout: bool,
    stderr: bool,
    timestamps: bool,
) -> None:
    since_ns = None if since is None else moment(since, "--since")
    until_ns = None if until is None else moment(until, "--until")
    with connect() as client:
        items = client.stream(
            client.resolve(job_id),
            offset=offset,
            tail_lines=tail,
            since_ns=since_ns,
            until_ns=until_ns,
            follow=follow,
            source=None if stdout == stderr else Source.STDOUT if stdout else Source.STDERR,
            timestamps=timestamps,
        )
        if as_json():
            for item in items:
                click.echo(client_json.line(plain(item)))
        else:
            Sink(sys.stdout.fileno()).copy(stamped(items) if timestamps else items)

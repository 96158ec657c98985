"""`worker-client stream`."""

from __future__ import annotations

import sys

import click

from jobworker.cli import client_offers
from jobworker.cli.client_command import ClientCommand, as_json, connect
from jobworker.cli.client_output import Sink, json_lines
from jobworker.cli.client_time import moment
from jobworker.jobs import MAX_TAIL_LINES, OutputFormat, Source

_HELP = """Write a job's output. Also called `logs`.

The bytes come as the job wrote them. Only on a terminal, control sequences other than colours are made visible.
A broken connection is resumed where it broke. ID is a job's id, or the beginning of it: four characters or more.

\b
worker-client stream k7f3 --follow
worker-client stream k7f3 --tail 20 --follow
worker-client stream k7f3 --since 10m --timestamps
worker-client stream k7f3 --since 2026-01-31T08:00:00Z --until 2026-01-31T09:00:00Z
worker-client stream k7f3 --stdout > build.log
worker-client stream k7f3 --follow --lines | grep --line-buffered error
worker-client stream k7f3 --format json | jq -r 'select(.source == "STDERR").text'

T is a time with its zone, or a duration back from now. The job's host notes times, exact to 10 ms.

With `--lines` or `--timestamps` standard output and standard error never share a line: one that is not complete
yet is waited for, and without `--follow` left out. Bytes that are not UTF-8 are written out, as in \\xff.

With `--format json` each line is an object, and so are gaps and the end: that is its `type`. A line has `source`,
`time` and `text`, or `base64` if it is not UTF-8, and `partial` if it was cut or has no newline. Its `end` is the
--offset to go on at.
"""


# What the fields of a request hold.
_MOST = 2**63 - 1


@click.command("stream", cls=ClientCommand, help=_HELP)
@click.option("--follow", "-f", is_flag=True, help="Go on with new output until it has ended.")
@click.option("--offset", metavar="N", type=click.IntRange(0, _MOST), default=0, help="Begin at this byte.")
@click.option(
    "--tail", "-n", metavar="N", type=click.IntRange(0, MAX_TAIL_LINES), help="Begin so many lines before the end."
)
@click.option("--since", metavar="T", help="Begin at this time, or this long ago.")
@click.option("--until", metavar="T", help="End at this time, or this long ago.")
@click.option("--stdout", is_flag=True, help="Only what the job wrote to its standard output.")
@click.option("--stderr", is_flag=True, help="Only what it wrote to its standard error.")
@click.option("--timestamps", "-t", is_flag=True, help="Put before each line when it was written.")
@click.option("--lines", is_flag=True, help="Whole lines rather than bytes as they come.")
@click.option("--compress", is_flag=True, help="Have the agent compress what it sends, for a slow network.")
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
    lines: bool,
    compress: bool,
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
            output_format=_format(lines=lines or timestamps),
            compress=compress,
        )
        sink = Sink(sys.stdout.fileno())
        if as_json():
            sink.lines(json_lines(items))
        else:
            sink.copy(items)


def _format(*, lines: bool) -> OutputFormat:
    if as_json():
        return OutputFormat.JSON
    return OutputFormat.TEXT if lines else OutputFormat.BINARY

"""`worker-client stream`."""

from __future__ import annotations

import base64
import sys
from typing import Any

import click

from jobworker.cli import client_json
from jobworker.cli.client_command import ClientCommand, as_json, connect
from jobworker.cli.client_output import Sink
from jobworker.client.output import Chunk, Gap, Item
from jobworker.jobs import Source

_HELP = """Write a job's output. Also called `logs`.

The bytes come as the job wrote them. Only on a terminal, control sequences other than colours are made visible.
A broken connection is resumed where it broke. ID is a job's id, or the beginning of it: four characters or more.

\b
worker-client stream k7f3 --follow
worker-client stream k7f3 --stdout > build.log
worker-client stream k7f3 --format json

With `--format json` each line is an object: `type` is chunk, gap or end, and `data` is in base 64.
"""


@click.command("stream", cls=ClientCommand, help=_HELP)
@click.option("--follow", "-f", is_flag=True, help="Go on with new output until it has ended.")
@click.option("--offset", metavar="N", type=click.IntRange(min=0), default=0, help="Begin at this byte.")
@click.option("--stdout", is_flag=True, help="Only what the job wrote to its standard output.")
@click.option("--stderr", is_flag=True, help="Only what it wrote to its standard error.")
@click.argument("job_id", metavar="ID")
def stream(job_id: str, offset: int, *, follow: bool, stdout: bool, stderr: bool) -> None:
    source = None if stdout == stderr else Source.STDOUT if stdout else Source.STDERR
    with connect() as client:
        items = client.stream(client.resolve(job_id), offset=offset, follow=follow, source=source)
        if as_json():
            for item in items:
                click.echo(client_json.line(_plain(item)))
        else:
            Sink(sys.stdout.fileno()).copy(items)


def _plain(item: Item) -> dict[str, Any]:
    match item:
        case Chunk(offset, data, source):
            text = base64.b64encode(data).decode()
            return {"type": "chunk", "offset": offset, "source": source and source.name, "data": text}
        case Gap(offset, length, reason):
            return {"type": "gap", "offset": offset, "length": length, "reason": reason}
        case _:
            return {"type": "end", "offset": item.offset, "output_ended": item.output_ended}

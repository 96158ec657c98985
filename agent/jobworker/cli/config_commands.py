"""`worker-agent config`: check the agent's configuration, and show what it makes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import BinaryIO

import click

from jobworker import codec
from jobworker.cli import checked_file
from jobworker.cli.privileges import give_up
from jobworker.errors import InvalidField
from jobworker.settings import extras
from jobworker.settings.schema import Settings

_WHAT = "configuration"
# In place of a value that there is not.
_NONE = "(none)"

_CHECK = """\
Check a configuration file (or standard input): the line and field of each mistake, or that there is none.

Exit status: 0 if it is good, 2 if it is not. The files that it names, `policy` and `limits`, are checked by
`worker-agent policy check` and `worker-agent limits check`; certificates and the host by `worker-agent doctor`.

\b
Example:
  worker-agent config check /etc/jobworker/agent.yaml
"""

_SHOW = """\
Show all settings that a configuration file makes, and where each comes from: its line, or the default.

\b
Examples:
  worker-agent config show /etc/jobworker/agent.yaml
  worker-agent config show agent.yaml --format json | jq -r '."jobs.max_memory".value'
"""


@click.group()
def config() -> None:
    """Check the agent's configuration, and show what it makes."""


@config.command(help=_CHECK, short_help="Check a configuration file.")
@click.argument("file", type=click.File("rb"), default="-")
def check(file: BinaryIO) -> None:
    settings, lines = _load(file)
    try:
        extras.check(settings)
    except InvalidField as error:
        checked_file.fail(f"{_place(file, lines[error.field])}: {error}")
    click.echo("the configuration is good")


@config.command(help=_SHOW, short_help="Show all settings, and where each comes from.")
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="What to print.")
def show(file: BinaryIO, form: str) -> None:
    settings, lines = _load(file)
    from jobworker.settings import effective  # noqa: PLC0415 - brings in the YAML parser

    rows = [
        (each.key, each.value, _place(file, each.line) if each.line else "default")
        for each in effective.all_of(settings, lines)
    ]
    if form == "json":
        told = {key: {"value": value, "origin": origin} for key, value, origin in rows}
        click.echo(json.dumps(told, indent=2))
        return
    widths = [max(len(row[i] or _NONE) for row in rows) for i in range(2)]
    for key, value, origin in rows:
        click.echo(f"{key:<{widths[0]}}  {value or _NONE:<{widths[1]}}  {origin}")


@config.command(hidden=True)
@click.option("--over", default="", metavar="JSON", help="Canonical settings that the configuration is laid over.")
def canonical(over: str) -> None:
    """Read a configuration from standard input and print canonical settings, as the agent reads them.

    As root, gives up its privileges before it looks at the input.
    """
    base = codec.loads(Settings, over.encode()) if over else None
    settings, _ = _load(sys.stdin.buffer, base)
    sys.stdout.buffer.write(codec.dumps(settings))


def _place(file: BinaryIO, line: int) -> str:
    return f"line {line}" if file.name.startswith("<") else f"{file.name}:{line}"


def _load(file: BinaryIO, base: Settings | None = None) -> tuple[Settings, Mapping[str, int]]:
    """What the file makes, and on which line each setting is; as root, gives up all privileges before."""
    # Brings in the YAML parser, all of it while its files can be read.
    from jobworker.settings import effective, load  # noqa: F401, PLC0415

    give_up()
    return checked_file.load(file, _WHAT, lambda text: load.read(text, base))

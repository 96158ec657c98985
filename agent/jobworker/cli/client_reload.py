"""`worker-client reload`."""

from __future__ import annotations

import click

from jobworker.cli import client_json, client_text
from jobworker.cli.client_command import ClientCommand, as_json, connect

_HELP = """Have the agent read its certificates, revocations, policy and limits anew.

A file that has changed is taken without that as well, with the next call; this tells whether it was.

\b
worker-client reload
worker-client --inventory hosts.yml --group web reload

Exit codes: as of every command, and 1 if a file can't be used: what was good before it is in force.
"""


@click.command("reload", cls=ClientCommand, help=_HELP)
def reload() -> int:
    with connect() as client:
        found = client.reload()
    click.echo(client_json.line(client_json.reloaded(found)) if as_json() else client_text.reloaded(found))
    return int(bool(found.stale_files))

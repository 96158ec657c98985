"""`worker-client info` and `version`."""

from __future__ import annotations

import click

import jobworker
from jobworker.cli import client_json, client_text
from jobworker.cli.client_command import ClientCommand, as_json, connect

_INFO_HELP = """Show what the agent is, and what it can enforce.

\b
worker-client info
worker-client info --format json | jq .limits
"""

_VERSION_HELP = """Print the version of this client.

\b
worker-client version
"""


@click.command("info", cls=ClientCommand, help=_INFO_HELP)
def info() -> None:
    with connect() as client:
        agent = client.agent_info()
    click.echo(client_json.line(client_json.agent(agent)) if as_json() else client_text.agent(agent))


@click.command("version", cls=ClientCommand, help=_VERSION_HELP)
def version() -> None:
    told = jobworker.__version__
    click.echo(client_json.line({"version": told}) if as_json() else f"worker-client {told}")

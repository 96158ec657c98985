"""`worker-client doctor`: what is wrong between this client and the agent."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import click

from jobworker.cli import client_options, findings_text
from jobworker.cli.client_command import ClientCommand, as_json, request_id
from jobworker.client import context
from jobworker.client.context import Setting
from jobworker.client.endpoint import Endpoint
from jobworker.client.failures import SettingsMissing
from jobworker.errors import InvalidField
from jobworker.findings import Finding, failure

_HELP = """Look for what is wrong between this client and the agent, and say how to mend it.

A line for each check: who says where the agent is, whether your files can be used and fit together, whether the
address is reached, whether the two sides accept each other's certificates, and what the agent tells of itself.
Nothing is changed. What is wrong with the agent's host, `worker-agent doctor` tells there.

\b
worker-client doctor
worker-client doctor --context staging
worker-client doctor --format json | jq -r 'select(.level != "ok") | .told'

\b
Each line begins with `ok`, with `warn` for what works and lacks something, or with `FAIL`.
Exit codes: 1 if a line says FAIL, else 0.
"""


@click.command("doctor", cls=ClientCommand, help=_HELP)
def doctor() -> int:
    ctx = click.get_current_context()
    flags, chosen = client_options.connection(ctx), client_options.value(ctx, "context")
    return findings_text.show(_findings(flags, os.environ, chosen, request_id(ctx)), as_json=as_json())


def _findings(flags: Mapping[str, str], environ: Mapping[str, str], chosen: str, named: str) -> Iterator[Finding]:
    from jobworker.cli import doctor_connection  # noqa: PLC0415 - cryptography and ssl take 100 ms to import

    try:
        found = context.settings(flags, environ, chosen)
        yield from (_origin(name, setting) for name, setting in found.items())
        context.check_complete(found, environ, chosen)
    except (InvalidField, SettingsMissing) as error:
        yield failure("settings", str(error))
        return
    endpoint = Endpoint(**{name: setting.value for name, setting in found.items()})
    yield from doctor_connection.findings(endpoint, named)


def _origin(name: str, setting: Setting) -> Finding:
    others = f"; {', '.join(setting.passed_over)} does not count" if setting.passed_over else ""
    return Finding("settings", f"{name} is {setting.value}, says {setting.origin}{others}")

"""worker-agent: the agent's own commands."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click
from click.core import ParameterSource

from jobworker import program
from jobworker.cli import config_commands, limits_commands, policy_commands
from jobworker.cli.agent_audit import audit
from jobworker.cli.firewall import firewall
from jobworker.errors import HostFault
from jobworker.settings.schema import SOCKET_NAME

_DEV = """\
Run the whole agent in the foreground, with certificates made for it.

Development certificates go to DIR/pki, jobs and their logs to DIR/state. Prints a line that starts with
"ready" once it serves. Ends on Ctrl-C or SIGTERM, and stops its jobs first. If it is killed, jobs run on,
and the next start on the same DIR takes them over, with its own settings.

As root each job has a user of its own and its cgroup's limits. An ordinary user gets what is delegated to
that user; what can't be enforced is said at the start, and refused when a job asks for it.

\b
Example:
  worker-agent dev --dir /tmp/jobworker --listen 127.0.0.1:7443
  worker-client --addr 127.0.0.1:7443 --ca /tmp/jobworker/pki/ca.pem \\
    --cert /tmp/jobworker/pki/writer.pem --key /tmp/jobworker/pki/writer.key run -- ls -l /
"""

_UPGRADE = """\
Let the running agent execute the code that is installed now. Jobs notice nothing.

The new code has to prove first that it starts and can read the present state; if it can't, the old one goes
on, and the answer says why. Only for the user that the agent runs as. With --config the settings are read
anew as well, as `systemctl reload jobworker-keeper` has it.

\b
Examples:
  worker-agent upgrade --config /etc/jobworker/agent.yaml --gateway-user jobworker
  worker-agent upgrade --state-dir /var/lib/jobworker
"""

_KEEPER = """\
Run the root side of the agent, as jobworker-keeper.service does.

The configuration is read by a process without privileges. Serves under a service manager; jobs outlive a
restart of it there (sd_notify, descriptor store).

\b
Example:
  worker-agent keeper --config /etc/jobworker/agent.yaml --gateway-user jobworker
"""

_GATEWAY = """\
Run the side of the agent that clients reach, as jobworker-gateway.service does. Not as root.

\b
Example:
  worker-agent gateway --config /etc/jobworker/agent.yaml
"""

_DOCTOR = """\
Look for what is wrong with this host, or with an agent's configuration on it, and say how to mend it.

A line for each check: settings, kernel, cgroups and limits, sandboxes, clock, state directory, free space, policy,
certificates and revocation lists. Nothing is changed, but that a cgroup is made and removed, as by an agent that
starts. An agent that runs is not disturbed.

\b
Examples:
  worker-agent doctor
  worker-agent doctor --config /etc/jobworker/agent.yaml --gateway-user jobworker --format json

\b
Each line begins with `ok`, with `warn` for what works and lacks something, or with `FAIL`.
Exit codes: 1 if a line says FAIL, else 0.
"""

_CONFIG = click.option(
    "--config",
    required=True,
    type=click.Path(dir_okay=False, exists=True),
    metavar="FILE",
    help="The agent's configuration, in YAML.",
)
_GATEWAY_USER = click.option(
    "--gateway-user", default="", metavar="NAME", help="Who the gateway runs as; otherwise gateway_uid says."
)
_SETTINGS = click.option(
    "--settings",
    "settings_path",
    default="/run/jobworker/settings.json",
    show_default=True,
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Where the root side finds its settings, as they were read.",
)


@click.group(context_settings=program.SETTINGS)
@program.version
def cli() -> None:
    """Run and check the jobworker agent, which runs commands on this host for remote clients."""


cli.add_command(audit)
cli.add_command(firewall)


@cli.command(help=_DEV, short_help="Run the whole agent in the foreground, to try it out.")
@click.option(
    "--dir", "directory", required=True, type=click.Path(file_okay=False), metavar="DIR", help="Holds it all."
)
@click.option(
    "--listen", default="127.0.0.1:7443", show_default=True, metavar="ADDRESS:PORT", help="PORT 0: a free one."
)
@click.option("--config", type=click.Path(dir_okay=False, exists=True), metavar="FILE", help="Settings, in YAML.")
def dev(directory: str, listen: str, config: str | None) -> None:
    from jobworker.cli import dev as dev_agent  # noqa: PLC0415 - `--help` need not wait for it

    try:
        status = dev_agent.run(directory, listen, config)
    except OSError as error:
        # Of all that an agent does here, output is the least.
        raise HostFault.of("running the agent", error) from None
    sys.exit(status)


@cli.command(help=_KEEPER, short_help="Run the root side, for a service manager.")
@_CONFIG
@_GATEWAY_USER
@_SETTINGS
def keeper(config: str, gateway_user: str, settings_path: str) -> None:
    from jobworker.cli import service  # noqa: PLC0415 - `--help` need not wait for it

    service.keeper(config, gateway_user, settings_path)


@cli.command(help=_GATEWAY, short_help="Run the side that clients reach, for a service manager.")
@_CONFIG
def gateway(config: str) -> None:
    from jobworker.cli import service  # noqa: PLC0415 - `--help` need not wait for it

    service.gateway(config)


@cli.command(help=_UPGRADE, short_help="Let the running agent execute the code that is installed now.")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, exists=True),
    metavar="FILE",
    help="Take its settings anew as well.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, exists=True),
    metavar="DIR",
    help="The state directory of an agent whose settings stay.",
)
@_GATEWAY_USER
@_SETTINGS
def upgrade(config: str | None, state_dir: str | None, gateway_user: str, settings_path: str) -> None:
    from jobworker.cli import service  # noqa: PLC0415 - `--help` need not wait for it

    if (config is None) == (state_dir is None):
        raise click.UsageError("give one of --config and --state-dir")
    if state_dir and (gateway_user or _is_given("settings_path")):
        raise click.UsageError(
            "--gateway-user and --settings go with --config: with --state-dir all settings stay"
        )
    if config:
        old, new = service.upgrade(config, gateway_user, settings_path)
    else:
        old, new = service.upgrade_in(os.path.join(state_dir or "", SOCKET_NAME))
    click.echo(f"upgraded from {old} to {new}")


def _is_given(param: str) -> bool:
    return click.get_current_context().get_parameter_source(param) is ParameterSource.COMMANDLINE


@cli.command(help=_DOCTOR, short_help="Look for what is wrong with this host, or a configuration.")
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="The agent's configuration: by default /etc/jobworker/agent.yaml.",
)
@_GATEWAY_USER
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="What to print.")
def doctor(config: str | None, gateway_user: str, form: str) -> None:
    from jobworker.cli import agent_doctor, findings_text  # noqa: PLC0415 - `--help` need not wait for it

    sys.exit(findings_text.show(agent_doctor.findings(config, gateway_user), as_json=form == "json"))


cli.add_command(config_commands.config)
cli.add_command(policy_commands.policy)
cli.add_command(limits_commands.limits)


def main() -> NoReturn:
    program.main("worker-agent", cli)


if __name__ == "__main__":
    main()

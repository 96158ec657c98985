"""The options that worker-client takes everywhere: before the command's name as well as behind it.

What stands behind it counts. Values are kept in click's `ctx.meta`, which a command shares with its parents.
Imports click and nothing else, because `worker-client --help` does.
"""

from __future__ import annotations

from typing import Any, TypeVar

import click

from jobworker.cli import client_offers

T = TypeVar("T")

CONNECTION = ("addr", "ca", "cert", "key", "server_name")
# The commands that can be for many hosts.
ON_MANY_HOSTS = ("run", "start", "stop", "query", "list", "info", "drain", "undrain", "reload", "top")
_META = "jobworker."
# Whether it is there is told with all else that can be wrong with it.
_FILE = click.Path()


class SharedOption(click.Option):
    """An option of every command; its value goes into the context instead of the command's arguments."""

    def __init__(self, flag: str, **attributes: Any) -> None:
        super().__init__([flag], expose_value=False, callback=_remember, **attributes)


class FleetOption(SharedOption):
    """One that is about many hosts at once."""


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    # One that is repeatable has no values where it was not given.
    if value in (None, ()):
        return
    key = f"{_META}{param.name}"
    # Before the command's name and behind it is given twice, and counts twice where that means something.
    ctx.meta[key] = (*ctx.meta.get(key, ()), *value) if param.multiple else value


def value(ctx: click.Context, name: str) -> str:
    """What was given for an option; empty for nothing."""
    return value_or(ctx, name, "")


def value_or(ctx: click.Context, name: str, default: T) -> T:
    """What was given for an option that is no text, or has a default."""
    given: T = ctx.meta.get(f"{_META}{name}", default)
    return given


def connection(ctx: click.Context) -> dict[str, str]:
    """What was given for each setting of the connection; empty for nothing."""
    return {name: value(ctx, name) for name in CONNECTION}


def for_many_hosts(ctx: click.Context) -> bool:
    """Whether any option about many hosts was given."""
    return any(f"{_META}{option.name}" in ctx.meta for option in fleet_options())


def shared_options() -> list[click.Parameter]:
    return [
        SharedOption("--addr", metavar="HOST:PORT", help="The agent. [JOBWORKER_ADDR]"),
        SharedOption(
            "--ca", type=_FILE, metavar="FILE", help="CA certificates to check the agent with. [JOBWORKER_CA]"
        ),
        SharedOption("--cert", type=_FILE, metavar="FILE", help="Your certificate. [JOBWORKER_CERT]"),
        SharedOption("--key", type=_FILE, metavar="FILE", help="Its private key. [JOBWORKER_KEY]"),
        SharedOption(
            "--server-name",
            metavar="NAME",
            help="The name in the agent's certificate, if it is not its host. [JOBWORKER_SERVER_NAME]",
        ),
        SharedOption(
            "--context",
            metavar="NAME",
            shell_complete=client_offers.contexts,
            help="A context of the file JOBWORKER_CONFIG, or ~/.config/jobworker/config.yaml.",
        ),
        SharedOption(
            "--request-id",
            metavar="ID",
            help="What the agent's log and audit trail call your request, and query the job it starts. "
            "[JOBWORKER_REQUEST_ID]",
        ),
        SharedOption("--format", type=click.Choice(["text", "json"]), help="What to print; text by default."),
    ]


def fleet_options() -> list[click.Parameter]:
    return [
        FleetOption(
            "--inventory",
            metavar="FILE",
            help="Ansible's inventory, or what `ansible-inventory --list` printed. [JOBWORKER_INVENTORY]",
        ),
        FleetOption("--group", metavar="NAME", multiple=True, help="The hosts of this group. Repeatable."),
        FleetOption("--host", metavar="NAME", multiple=True, help="This host. Repeatable."),
        FleetOption(
            "--limit", metavar="PATTERN", help="Only hosts that match, in Ansible's language: 'web*:!web7'."
        ),
        FleetOption(
            "--forks", metavar="N", type=click.IntRange(1, 1000), help="So many hosts at a time: 20 by default."
        ),
        FleetOption(
            "--max-fail", metavar="N|N%", help="Begin no other host when more than so many have failed: 3, 10%."
        ),
        FleetOption("--connect-timeout", metavar="TIME", help="To reach a host: 5s by default."),
    ]


def write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """A command's options for its help text, its own first."""
    params = command.get_params(ctx)
    shared = [param for param in params if isinstance(param, SharedOption)]
    own = [param for param in params if isinstance(param, click.Option) and param not in shared]
    fleet = [param for param in shared if isinstance(param, FleetOption)]
    every = [param for param in shared if param not in fleet]
    sections = (("Options", own), ("Options of every command", every), ("Many hosts at once", fleet))
    for title, options in sections:
        records = [record for option in options if (record := option.get_help_record(ctx))]
        if records:
            with formatter.section(title):
                formatter.write_dl(records)

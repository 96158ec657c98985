"""What a call asks for on many hosts: which, how many at a time, and when it is enough."""

from __future__ import annotations

import os
from collections.abc import Iterator

import click

from jobworker import units
from jobworker.cli import client_options
from jobworker.cli.client_command import complain
from jobworker.cli.fleet import sources
from jobworker.cli.fleet.fanout import Budget, read_budget
from jobworker.cli.fleet.targets import Target, Wanted, choose
from jobworker.cli.fleet.targets import targets as targets_of
from jobworker.client import context, tls
from jobworker.client.endpoint import Endpoint
from jobworker.client.failures import CredentialsUnusable
from jobworker.errors import InvalidField, TlsProblem

_FORKS, _CONNECT_TIMEOUT = 20, "5s"
# Each host has its own; nobody calls this one.
_NO_ADDR = "0.0.0.0:1"


def targets(ctx: click.Context) -> Iterator[Target]:
    """The hosts that are wanted.

    Raises:
        JobWorkerError: a mistake in what was asked for.
        click.UsageError: likewise.
    """
    for name in ("addr", "server_name"):
        if client_options.value(ctx, name):
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} is for one host; of many the inventory tells it")
    path = client_options.value(ctx, "inventory") or os.environ.get("JOBWORKER_INVENTORY", "")
    if not path:
        raise click.UsageError("there is no inventory; give --inventory FILE, or set JOBWORKER_INVENTORY")
    groups = client_options.value_or(ctx, "group", tuple[str, ...]())
    hosts = client_options.value_or(ctx, "host", tuple[str, ...]())
    wanted = Wanted(groups, hosts, client_options.value_or(ctx, "limit", None))
    if wanted == Wanted((), (), None):
        raise click.UsageError("say which hosts of the inventory: --group all for all of them")
    base = _base(ctx)
    inventory = sources.read(path)
    chosen = choose(inventory, wanted)
    for term in chosen.unmatched:
        complain(f"--limit: {term!r:.80} matches nothing in the inventory")
    return targets_of(inventory, chosen.hosts, base)


def _base(ctx: click.Context) -> Endpoint:
    """What one proves oneself with to all hosts.

    Raises:
        JobWorkerError: something is missing, or no agent would take it.
    """
    flags = {name: client_options.value(ctx, name) for name in ("ca", "cert", "key")}
    base = context.endpoint({**flags, "addr": _NO_ADDR}, os.environ, client_options.value(ctx, "context"))
    # Told once, and not by each host.
    try:
        tls.preflight(base)
    except TlsProblem as problem:
        raise CredentialsUnusable(problem) from None
    return base


def budget(ctx: click.Context) -> Budget | None:
    text = client_options.value(ctx, "max_fail")
    return read_budget(text, "--max-fail") if text else None


def connect_timeout(ctx: click.Context) -> float:
    """In seconds."""
    text = client_options.value_or(ctx, "connect_timeout", _CONNECT_TIMEOUT)
    millis = units.parse_duration(text, "--connect-timeout")
    if not millis:
        raise InvalidField("--connect-timeout", "is no time at all", _CONNECT_TIMEOUT)
    return millis / 1000


def forks(ctx: click.Context) -> int:
    """So many hosts at a time."""
    return client_options.value_or(ctx, "forks", _FORKS)

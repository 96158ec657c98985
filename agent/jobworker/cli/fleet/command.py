"""A command on many hosts, from its options to its exit code."""

from __future__ import annotations

import os
from collections.abc import Iterator

import click

from jobworker import units
from jobworker.cli import client_options
from jobworker.cli.client_command import as_json, complain, connect_to
from jobworker.cli.fleet import sources
from jobworker.cli.fleet.actions import Action, Visit, prepare
from jobworker.cli.fleet.fanout import Budget, Fanout, read_budget
from jobworker.cli.fleet.interrupts import Interrupts
from jobworker.cli.fleet.outcome import Outcome, exit_code, of_error, summary
from jobworker.cli.fleet.printer import Lane, Printer
from jobworker.cli.fleet.targets import Target, Wanted, choose, targets
from jobworker.client import context, tls
from jobworker.client.endpoint import Endpoint
from jobworker.errors import InvalidField, JobWorkerError

_FORKS, _CONNECT_TIMEOUT = 20, "5s"
# Each host has its own; nobody calls this one.
_NO_ADDR = "0.0.0.0:1"


def invoke(ctx: click.Context) -> int:
    """Do a command on the hosts that its options name; its exit code.

    Raises:
        JobWorkerError: a mistake in what was asked for; no host was called.
        OSError: nobody takes the output; jobs that were followed are stopped if it is a BrokenPipeError.
    """
    action = prepare(ctx.command.name or "", ctx.params)
    found = list(_targets(ctx))
    seconds = _connect_timeout(ctx)
    printer = Printer(as_json=as_json(), environ=os.environ)
    fanout = Fanout(found, _budget(ctx))
    detach = ctx.params.get("detach_on_interrupt", False)
    with Interrupts(fanout.close, fanout.leave, detach=detach) as interrupts:

        def visit(target: Target) -> Outcome:
            return _visit(target, action, Lane(printer, target.name), interrupts, seconds)

        try:
            _follow(fanout.run(visit, client_options.value_or(ctx, "forks", _FORKS)), fanout)
        except BrokenPipeError:
            interrupts.stop_all()
            raise
        for host, job_id in interrupts.followed().items():
            printer.tell(host, f"job {job_id} may go on; `worker-client query {job_id}` tells how it is")
        outcomes = [*fanout.outcomes, *_told(fanout.rest(), printer)]
    for line in summary(outcomes):
        complain(line)
    return exit_code(outcomes, interrupted=interrupts.count > 0)


def _visit(target: Target, action: Action, lane: Lane, interrupts: Interrupts, seconds: float) -> Outcome:
    try:
        with connect_to(target.endpoint, connect_timeout=seconds) as connected:
            connected.reach()
            outcome = action(Visit(connected, lane, interrupts))
    except JobWorkerError as error:
        outcome = of_error(target.name, error)
    lane.result(outcome)
    return outcome


def _follow(outcomes: Iterator[Outcome], fanout: Fanout) -> None:
    said = False
    for _ in outcomes:
        if fanout.exceeded() and not said:
            complain("more hosts have failed than --max-fail allows: no other one is begun")
            said = True


def _told(rest: list[Outcome], printer: Printer) -> list[Outcome]:
    for outcome in rest:
        Lane(printer, outcome.host).result(outcome)
    return rest


def _targets(ctx: click.Context) -> Iterator[Target]:
    for name in ("addr", "server_name"):
        if client_options.value(ctx, name):
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} is for one host; of many the inventory tells it")
    path = client_options.value(ctx, "inventory") or os.environ.get("JOBWORKER_INVENTORY", "")
    if not path:
        raise click.UsageError("there is no inventory; give --inventory FILE, or set JOBWORKER_INVENTORY")
    groups = client_options.value_or(ctx, "group", tuple[str, ...]())
    hosts = client_options.value_or(ctx, "host", tuple[str, ...]())
    wanted = Wanted(groups, hosts, client_options.value(ctx, "limit"))
    if wanted == Wanted((), (), ""):
        raise click.UsageError("say which hosts of the inventory: --group all for all of them")
    base = _base(ctx)
    inventory = sources.read(path)
    chosen = choose(inventory, wanted)
    for term in chosen.unmatched:
        complain(f"--limit: {term!r:.80} matches nothing in the inventory")
    return targets(inventory, chosen.hosts, base)


def _base(ctx: click.Context) -> Endpoint:
    """What one proves oneself with to all hosts.

    Raises:
        JobWorkerError: something is missing, or no agent would take it.
    """
    flags = {name: client_options.value(ctx, name) for name in ("ca", "cert", "key")}
    base = context.endpoint({**flags, "addr": _NO_ADDR}, os.environ, client_options.value(ctx, "context"))
    # Told once, and not by each host.
    tls.preflight(base)
    return base


def _budget(ctx: click.Context) -> Budget | None:
    text = client_options.value(ctx, "max_fail")
    return read_budget(text, "--max-fail") if text else None


def _connect_timeout(ctx: click.Context) -> float:
    """In seconds."""
    text = client_options.value_or(ctx, "connect_timeout", _CONNECT_TIMEOUT)
    millis = units.parse_duration(text, "--connect-timeout")
    if not millis:
        raise InvalidField("--connect-timeout", "is no time at all", _CONNECT_TIMEOUT)
    return millis / 1000

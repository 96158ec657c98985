"""A command on many hosts, from its options to its exit code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import click

from jobworker import program
from jobworker.cli.client_command import as_json, complain, connect_to, request_id
from jobworker.cli.fleet import asked, top
from jobworker.cli.fleet.actions import Action, Visit, prepare
from jobworker.cli.fleet.fanout import Fanout
from jobworker.cli.fleet.interrupts import FleetInterrupts
from jobworker.cli.fleet.outcome import Outcome, exit_code, of_error, of_lost, summary
from jobworker.cli.fleet.printer import Lane, Printer
from jobworker.cli.fleet.targets import Target
from jobworker.errors import JobWorkerError

if TYPE_CHECKING:
    from jobworker.client.rpc.client import Client


def invoke(ctx: click.Context) -> int:
    """Do a command on the hosts that its options name; its exit code.

    Raises:
        JobWorkerError: a mistake in what was asked for; no host was called.
        BrokenPipeError: nobody takes the output; jobs that were followed are stopped.
    """
    if ctx.command.name == "top":
        # The one that comes back to its hosts.
        return top.invoke(ctx)
    action = prepare(ctx.command.name or "", ctx.params)
    found = list(asked.targets(ctx))
    seconds, named = asked.connect_timeout(ctx), request_id(ctx)
    printer = Printer(as_json=as_json(), environ=os.environ)
    fanout = Fanout(found, asked.budget(ctx))
    detach, runs = ctx.params.get("detach_on_interrupt", False), ctx.command.name == "run"
    with FleetInterrupts(fanout.close, fanout.leave, detach=detach, runs=runs) as interrupts:

        def visit(target: Target) -> Outcome:
            connect = partial(connect_to, target.endpoint, named, connect_timeout=seconds)
            return _visit(target, action, Lane(printer, target.name), interrupts, connect)

        try:
            _follow(fanout.run(visit, asked.forks(ctx)), fanout)
        except BrokenPipeError:
            interrupts.stop_all()
            raise
        except OSError as error:
            # A disk is full. Nobody need go without what is known of jobs that run, nor take it that none does.
            interrupts.start_no_more()
            complain(program.told(error))
        for host, job_id in interrupts.followed().items():
            complain(f"{host}: job {job_id} may go on; `worker-client query {job_id}` tells how it is")
        # First, since outcomes may have come in that were not seen yet.
        rest = _told(fanout.rest(), printer)
        outcomes = [*fanout.outcomes, *rest]
    for line in summary(outcomes):
        complain(line)
    return exit_code(outcomes, interrupted=interrupts.count > 0)


def _visit(
    target: Target, action: Action, lane: Lane, interrupts: FleetInterrupts, connect: Callable[[], Client]
) -> Outcome:
    try:
        with connect() as connected:
            connected.reach()
            outcome = _there(action, Visit(connected, lane, interrupts))
    except JobWorkerError as error:
        outcome = of_error(target.name, error)
    lane.result(outcome)
    return outcome


def _there(action: Action, visit: Visit) -> Outcome:
    try:
        return action(visit)
    except JobWorkerError as error:
        return of_lost(visit.lane.host, error)


def _follow(outcomes: Iterator[Outcome], fanout: Fanout) -> None:
    said = False
    for _ in outcomes:
        if fanout.exceeded() and not said:
            complain("more hosts have failed than --max-fail allows: no other one is begun")
            said = True


def _told(rest: list[Outcome], printer: Printer) -> list[Outcome]:
    try:
        for outcome in rest:
            Lane(printer, outcome.host).result(outcome)
    except BrokenPipeError:
        raise
    except OSError as error:
        complain(program.told(error))
    return rest

"""What each command does on one of many hosts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from jobworker import jobs
from jobworker.cli import client_json, client_plan, client_text
from jobworker.cli.client_drain import check_idle, drained, wait_seconds
from jobworker.cli.client_exit import exit_status, notice_of
from jobworker.cli.client_interrupt import stop_unless_ended
from jobworker.cli.client_jobs import listing, stopping
from jobworker.cli.client_options import ON_MANY_HOSTS
from jobworker.cli.client_spec import spec_of
from jobworker.cli.fleet.interrupts import FleetInterrupts
from jobworker.cli.fleet.outcome import Outcome, Status, of_lost
from jobworker.cli.fleet.printer import Lane
from jobworker.errors import JobWorkerError

if TYPE_CHECKING:
    from jobworker.api.v1.job_pb2 import Job
    from jobworker.client.rpc.client import Client


@dataclass(frozen=True, slots=True)
class Visit:
    """One host while a command is there."""

    client: Client
    lane: Lane
    interrupts: FleetInterrupts

    def show_job(self, text: str, job: Job) -> None:
        self.lane.show(text, "job", job=client_json.job(job))

    def done(self, reason: str = "", detail: str = "") -> Outcome:
        """How it went: well, if there is no reason why not."""
        return Outcome(self.lane.host, Status.FAILED if reason else Status.OK, reason, detail)


Options: TypeAlias = Mapping[str, Any]
Action: TypeAlias = Callable[[Visit], Outcome]


def prepare(command: str, options: Options) -> Action:
    """What to do on each host.

    Args:
        command: its name.
        options: and arguments, as click names them.

    Raises:
        click.UsageError: the command is for one host, or its options do not go together.
        InvalidField: an option's value is wrong.
    """
    if command not in ACTIONS:
        many = ", ".join(ON_MANY_HOSTS)
        raise click.UsageError(f"`{command}` is for one host, which --addr names; for many there are {many}")
    return ACTIONS[command](options)


def _spec(options: Options) -> jobs.JobSpec:
    """What is to be run; a mistake in it is told before any host is called."""
    spec = spec_of(options["words"], options, os.environ)
    spec.check()
    return spec


def _start(options: Options) -> Action:
    spec = _spec(options)

    if options["dry_run"]:
        return _plan(spec, options)

    def act(visit: Visit) -> Outcome:
        job = visit.client.start(spec, idempotency_key=options["idempotency_key"])
        visit.show_job(job.id, job)
        return visit.done()

    return act


def _plan(spec: jobs.JobSpec, options: Options) -> Action:
    def act(visit: Visit) -> Outcome:
        found = visit.client.plan(spec, idempotency_key=options["idempotency_key"])
        visit.lane.show(client_text.plan_line(found), "plan", **client_plan.plain(found))
        return visit.done()

    return act


def _run(options: Options) -> Action:
    spec = _spec(options)

    if options["dry_run"]:
        return _plan(spec, options)

    def act(visit: Visit) -> Outcome:
        started = visit.interrupts.start(visit.lane.host, visit.client, spec, options["idempotency_key"])
        if started is None:
            return Outcome(visit.lane.host, Status.NOT_BEGUN)
        try:
            visit.show_job("", started)
            # With the times comes who wrote what, in one stream and so in order.
            output = visit.client.stream(
                started.id, follow=True, timestamps=True, output_format=visit.lane.output_format
            )
            visit.lane.output(output)
            (job,) = visit.client.wait([started.id])
        except BrokenPipeError:
            # Here, where the connection still is; what ends everything sees to the other hosts.
            stop_unless_ended(visit.client, started.id)
            visit.interrupts.ended(visit.lane.host)
            raise
        except JobWorkerError as error:
            # It counts as followed, and is named in the end as one that may go on.
            outcome = of_lost(visit.lane.host, error)
            if outcome.status is Status.WITHOUT:
                # Its record was removed, which takes an end.
                visit.interrupts.ended(visit.lane.host)
                return replace(outcome, status=Status.FAILED, reason="its end was not seen")
            return outcome
        visit.interrupts.ended(visit.lane.host)
        visit.show_job("", job)
        return _end(visit, job)

    return act


def _end(visit: Visit, job: Job) -> Outcome:
    notice = notice_of(job)
    if exit_status(job):
        return visit.done(client_text.status(job), notice)
    if notice:
        visit.lane.tell(notice)
    return visit.done()


def _unseen(_sentence: str) -> None:
    """What one of many hosts is waited for shows no line."""


def _stop(options: Options) -> Action:
    stop = stopping(**options)

    def act(visit: Visit) -> Outcome:
        for job in stop(visit.client, visit.lane.tell, _unseen):
            visit.show_job(f"{job.id}  {client_text.status(job)}", job)
        return visit.done()

    return act


def _query(options: Options) -> Action:
    job_id = jobs.check_job_id_prefix(options["job_id"], "job_id")

    def act(visit: Visit) -> Outcome:
        job = visit.client.query(visit.client.resolve(job_id))
        visit.show_job(client_text.job(job, time.time()), job)
        return visit.done()

    return act


def _list(options: Options) -> Action:
    listed = listing(options)

    def act(visit: Visit) -> Outcome:
        for job in listed(visit.client):
            visit.show_job(client_text.event(job), job)
        return visit.done()

    return act


def _info(_options: Options) -> Action:
    def act(visit: Visit) -> Outcome:
        agent = visit.client.agent_info()
        visit.lane.show(client_text.agent_line(agent), "agent", agent=client_json.agent(agent))
        return visit.done()

    return act


def _drain(options: Options) -> Action:
    wait, seconds = options["wait"], wait_seconds(options["timeout"], wait=options["wait"])

    def act(visit: Visit) -> Outcome:
        active = visit.client.drain()
        visit.lane.show("", "drain", draining=True, active_job_ids=list(active))
        for job in visit.client.list_jobs(states=jobs.ACTIVE) if active else ():
            visit.show_job(client_text.event(job), job)
        if wait:
            visit.client.wait_idle(timeout=seconds)
            check_idle(visit.client)
        if wait or not active:
            visit.lane.show(drained(wait=wait), "drained")
        return visit.done()

    return act


def _undrain(_options: Options) -> Action:
    def act(visit: Visit) -> Outcome:
        visit.client.undrain()
        visit.lane.show("new jobs are taken", "drain", draining=False)
        return visit.done()

    return act


def _reload(_options: Options) -> Action:
    def act(visit: Visit) -> Outcome:
        found = visit.client.reload()
        stale = client_json.stale_files(found)
        for what in found.read:
            problem = stale.get(what, "")
            told = " ".join(client_text.in_force(problem))
            visit.lane.show(f"{what}: {told}", "file", what=what, problem=problem)
        return visit.done(f"{', '.join(stale)} not in force" if stale else "")

    return act


ACTIONS: Mapping[str, Callable[[Options], Action]] = {
    "run": _run,
    "start": _start,
    "stop": _stop,
    "query": _query,
    "list": _list,
    "info": _info,
    "drain": _drain,
    "undrain": _undrain,
    "reload": _reload,
}

"""`worker-client stop`, `query` and `list`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from jobworker import jobs, units
from jobworker.cli import client_json, client_offers, client_text
from jobworker.cli.client_command import ClientCommand, as_json, complain, connect
from jobworker.cli.client_spec import label_option, labels_of
from jobworker.cli.client_time import moment
from jobworker.cli.progress import progress
from jobworker.client.failures import CallFailed, NothingMatches

if TYPE_CHECKING:
    from jobworker.api.v1.job_pb2 import Job
    from jobworker.client.rpc.client import Client

_STOP_HELP = """Stop a job and all of its processes.

The job gets a signal and time to end by itself; then all that is left of it is killed. This command returns
when no process of the job is left. ID is a job's id, or the beginning of it: four characters or more. With
--label instead, all jobs that have not ended and have it are stopped, one after the other.

\b
worker-client stop k7f3
worker-client stop k7f3 --signal INT --grace 1m
worker-client stop --label team=build
worker-client stop k7f3 --force

\b
Exit codes: as of every command; of several that could not be stopped, that of the last.
"""

_QUERY_HELP = """Show everything that is known of a job.

ID is a job's id, or the beginning of it: four characters or more.

\b
worker-client query k7f3
worker-client query k7f3 --format json | jq .exit_code
"""

_LIST_HELP = """List the jobs of the host, newest first. Also called `ps`.

\b
worker-client list
worker-client list --state running --state stopping
worker-client list --state lost
worker-client list --since 1h
worker-client list --label team=build --limit 10 --format json

On a terminal what does not fit goes through a pager: $PAGER, or less.
"""

# Jobs with a label may end, and be removed, while others are stopped.
_NOTHING_TO_STOP = ("JOB_ALREADY_ENDED", "JOB_NOT_FOUND")

STATES = click.Choice([word.value for word in (*jobs.State, *jobs.EndReason)], case_sensitive=False)


@click.command("stop", cls=ClientCommand, help=_STOP_HELP)
@click.option("--grace", metavar="TIME", default="10s", help="Time to end by itself: 10s by default.")
@click.option(
    "--signal",
    metavar="NAME",
    default="",
    shell_complete=client_offers.signals,
    help="The first signal: TERM by default.",
)
@click.option("--force", is_flag=True, help="Kill at once, without a signal before.")
@click.option("--no-wait", is_flag=True, help="Return as soon as the stop is under way.")
@label_option("Jobs with this label. Repeatable.")
@click.argument("job_id", metavar="ID", required=False, shell_complete=client_offers.jobs(*jobs.ACTIVE))
def stop(**options: Any) -> None:
    stopped = stopping(**options)
    with connect() as client, progress() as line:

        def tell(sentence: str) -> None:
            line.clear()
            complain(sentence)

        for job in stopped(client, tell, line.show):
            line.clear()
            click.echo(_json(job) if as_json() else f"{job.id}  {client_text.status(job)}")


def stopping(
    *, job_id: str | None, label: tuple[str, ...], grace: str, signal: str, force: bool, no_wait: bool
) -> Callable[[Client, Callable[[str], None], Callable[[str], None]], Iterator[Job]]:
    """What stops the jobs that the options of `stop` name, and tells how each is then.

    Of several that cannot be stopped it raises the last one's failure, and gives the others' to its second
    argument; the third one is told what is waited for.

    Raises:
        click.UsageError: no jobs are named, or in two ways.
        InvalidField: an option's value is wrong.
    """
    if bool(job_id) == bool(label):
        raise click.UsageError("give the ID of a job, or --label")
    labels, grace_ms = labels_of(label), units.parse_duration(grace, "--grace")

    def stopped(client: Client, tell: Callable[[str], None], wait_for: Callable[[str], None]) -> Iterator[Job]:
        stop_one = partial(client.stop, signal=signal, grace_ms=grace_ms, force=force, wait=not no_wait)
        if job_id:
            whole = client.resolve(job_id)
            wait_for(f"stopping job {whole}")
            yield stop_one(whole)
            return
        failure: CallFailed | None = None
        active = _active(client, labels)
        for number, whole in enumerate(active, 1):
            wait_for(f"stopping job {whole}, {number} of {len(active)}")
            try:
                job = stop_one(whole)
            except CallFailed as error:
                if error.reason in _NOTHING_TO_STOP:
                    continue
                # What can be stopped is, whatever cannot.
                if failure:
                    tell(str(failure))
                failure = error
            else:
                yield job
        if failure:
            raise failure

    return stopped


def _active(client: Client, labels: Mapping[str, str]) -> list[str]:
    """The ids of the jobs that have not ended and have these labels.

    Raises:
        NothingMatches: there is none.
    """
    ids = [job.id for job in client.list_jobs(states=jobs.ACTIVE, labels=labels)]
    if not ids:
        raise NothingMatches(labels)
    return ids


@click.command("query", cls=ClientCommand, help=_QUERY_HELP)
@click.argument("job_id", metavar="ID", shell_complete=client_offers.jobs())
def query(job_id: str) -> None:
    with connect() as client:
        job = client.query(client.resolve(job_id))
    click.echo(_json(job) if as_json() else client_text.job(job, time.time()))


def meant_by(words: tuple[str, ...]) -> tuple[tuple[jobs.State, ...], Callable[[Job], bool]]:
    """What `--state` says, states and end reasons: the states to ask for, and which of what is found is meant."""
    wanted, ends = set(words), jobs.EndReason.__members__
    states = {jobs.State.ENDED if word in ends else jobs.State(word) for word in wanted}

    def meant(job: Job) -> bool:
        told = {client_json.enum_name(job, name) for name in ("state", "end_reason")}
        return not wanted or not wanted.isdisjoint(told)

    return tuple(states), meant


@click.command("list", cls=ClientCommand, help=_LIST_HELP)
@click.option("--state", multiple=True, type=STATES, help="Only jobs in this state, or that ended so. Repeatable.")
@label_option("Only jobs with this label. Repeatable.")
@click.option("--principal", metavar="URI", default="", help="Only jobs that this client started.")
@click.option("--since", metavar="T", help="Only jobs created at this time or later, or in the last 10m, 2h.")
@click.option("--until", metavar="T", help="Only jobs created before this time, or longer ago than this.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Only the newest N.")
def list_jobs(**options: Any) -> None:
    listed = listing(options)
    with connect() as client:
        newest = listed(client)
        if as_json():
            for job in newest:
                click.echo(_json(job))
        else:
            _show(client_text.table(newest, time.time()))


def _show(text: str) -> None:
    """Print; what has more lines than the terminal goes through its user's pager."""
    if sys.stdout.isatty() and text.count("\n") >= os.get_terminal_size(sys.stdout.fileno()).lines:
        # As git has less: colours are colours, and nothing is left of what was paged but the last of it.
        os.environ.setdefault("LESS", "FRX")
        click.echo_via_pager(text)
    else:
        click.echo(text)


def listing(options: Mapping[str, Any]) -> Callable[[Client], Iterator[Job]]:
    """What lists the jobs that the options of `list` mean, newest first."""
    states, meant = meant_by(options["state"])
    labels = labels_of(options["label"])
    since, until = (
        None if options[name] is None else moment(options[name], f"--{name}") for name in ("since", "until")
    )

    def listed(client: Client) -> Iterator[Job]:
        found = client.list_jobs(
            states=states,
            labels=labels,
            principal=options["principal"],
            created_since_ns=since,
            created_until_ns=until,
        )
        return islice(filter(meant, found), options["limit"])

    return listed


def _json(job: Job) -> str:
    return client_json.line(client_json.job(job))

"""`worker-client watch` and `wait`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from jobworker import jobs
from jobworker.cli import client_json, client_offers, client_text
from jobworker.cli.client_command import ClientCommand, as_json, complain, connect
from jobworker.cli.client_exit import ExitsAsJob, exit_status
from jobworker.cli.client_spec import label_option, labels_of
from jobworker.cli.client_time import patience
from jobworker.cli.progress import progress
from jobworker.client.changes import Changed, Event, Mark, Removed, Restarted

_WATCH_HELP = """Show changes of jobs as they happen, a line each, until Ctrl-C.

With ids, only of these jobs; an id may be cut to its beginning, four characters or more. A broken connection is
resumed where it broke, and nothing is left out: where that cannot be promised, it is said, and all jobs follow as
they are. Of a job that changes faster than the lines are read, the newest state is shown.

\b
worker-client watch
worker-client watch --snapshot --state running --state stopping
worker-client watch --label team=build --format json | jq -r 'select(.type == "job") | .job.state'

With `--format json` each line is an object: `type` is job, removed, mark or restarted. `resume_token` of the last
one you have dealt with is what `--resume` takes.
"""

_WAIT_HELP = """Wait until jobs have ended, and exit as they did.

Each job is shown as it ends. Ctrl-C ends the waiting, not the jobs. An id may be cut to its beginning: four
characters or more.

\b
worker-client wait k7f3; echo "it exited with $?"
worker-client wait k7f3 b1cd --timeout 10m
worker-client wait k7f3 b1cd --any

\b
Exit codes: of one job its own, 128 + N when signal N ended it; of several, and with
`--any` of the one that ended, likewise: 0 when all were 0, else that of the first in
your order that was not. 124 after --timeout, 125 when jobworker failed.
"""


_STATES = click.Choice([state.value for state in jobs.State], case_sensitive=False)


@click.command("watch", cls=ClientCommand, help=_WATCH_HELP)
@click.option("--snapshot", is_flag=True, help="Begin with the jobs that there are.")
@click.option("--state", multiple=True, type=_STATES, help="Only changes into this state. Repeatable.")
@label_option("Only jobs with this label. Repeatable.")
@click.option("--principal", metavar="URI", default="", help="Only jobs that this client started.")
@click.option("--resume", metavar="TOKEN", default="", help="Begin where an earlier watch left off.")
@click.argument("job_ids", metavar="[ID]...", nargs=-1, shell_complete=client_offers.jobs())
def watch(
    job_ids: tuple[str, ...],
    *,
    snapshot: bool,
    state: tuple[str, ...],
    label: tuple[str, ...],
    principal: str,
    resume: str,
) -> None:
    show = _show_json if as_json() else _show_text
    with connect() as client:
        events = client.watch(
            job_ids=[client.resolve(text) for text in job_ids],
            states=[jobs.State(each) for each in state],
            labels=labels_of(label),
            principal=principal,
            snapshot=snapshot,
            resume_token=resume,
        )
        for event in events:
            show(event)


def _show_text(event: Event) -> None:
    match event:
        case Changed(job):
            click.echo(client_text.event(job))
        case Removed(job_id):
            click.echo(client_text.event_of(job_id, "REMOVED"))
        case Restarted(reason):
            complain(f"changes are left out: {reason}; the jobs follow as they are")


def _show_json(event: Event) -> None:
    click.echo(client_json.line(_plain(event)))


def _plain(event: Event) -> dict[str, Any]:
    match event:
        case Changed(job, token):
            return {"type": "job", "job": client_json.job(job), "resume_token": token}
        case Removed(job_id, token):
            return {"type": "removed", "id": job_id, "resume_token": token}
        case Mark(token, snapshot_complete):
            return {"type": "mark", "snapshot_complete": snapshot_complete, "resume_token": token}
        case _:
            return {"type": "restarted", "reason": event.reason}


@click.command("wait", cls=ExitsAsJob, help=_WAIT_HELP)
@click.option("--any", "first", is_flag=True, help="Wait for the first one that ends.")
@click.option("--timeout", metavar="TIME", help="Wait no longer than this: 30s, 10m. The jobs go on.")
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True, shell_complete=client_offers.jobs())
def wait(job_ids: tuple[str, ...], *, first: bool, timeout: str | None) -> int:
    seconds = None if timeout is None else patience(timeout, "--timeout")
    codes = dict[str, int]()
    with connect() as client, progress() as line:
        whole = [client.resolve(text) for text in job_ids]
        left = dict.fromkeys(whole)
        line.show(_waiting(left))
        for job in client.ends(whole, timeout=seconds):
            codes[job.id] = exit_status(job)
            line.clear()
            click.echo(
                client_json.line(client_json.job(job)) if as_json() else f"{job.id}  {client_text.status(job)}"
            )
            if first:
                break
            del left[job.id]
            if left:
                line.show(_waiting(left))
    return next((code for job_id in whole if (code := codes.get(job_id, 0))), 0)


def _waiting(job_ids: Collection[str]) -> str:
    return f"waiting for job {next(iter(job_ids))}" if len(job_ids) == 1 else f"waiting for {len(job_ids)} jobs"

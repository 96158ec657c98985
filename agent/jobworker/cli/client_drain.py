"""`worker-client drain` and `undrain`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from jobworker.cli import client_json, client_text
from jobworker.cli.client_command import ClientCommand, as_json, connect
from jobworker.cli.client_exit import TIMED_OUT
from jobworker.cli.client_time import patience
from jobworker.cli.progress import progress
from jobworker.client.failures import NotIdle, WaitTimedOut
from jobworker.jobs import ACTIVE

if TYPE_CHECKING:
    from jobworker.client.rpc.client import Client

_DRAIN_HELP = """Have the host take no new jobs, and show those that have not ended.

These go on. The host stays drained over restarts and upgrades of its agent, until `undrain`; `info` shows it.

\b
worker-client drain
worker-client drain --wait --timeout 30m && reboot-the-host

Exit codes: as of every command, and 124 after --timeout: the host stays drained.
"""

_UNDRAIN_HELP = """Have the host take new jobs again.

\b
worker-client undrain
"""


class _DrainCommand(ClientCommand):
    def exit_code(self, error: Exception) -> int:
        return TIMED_OUT if isinstance(error, WaitTimedOut) else super().exit_code(error)


@click.command("drain", cls=_DrainCommand, help=_DRAIN_HELP)
@click.option("--wait", is_flag=True, help="Return when no job is active any more.")
@click.option("--timeout", metavar="TIME", help="With --wait, no longer than this: 30s, 10m.")
def drain(*, wait: bool, timeout: str | None) -> None:
    seconds = wait_seconds(timeout, wait=wait)
    with connect() as client:
        active = client.drain()
        if as_json():
            click.echo(client_json.line({"draining": True, "active_job_ids": list(active)}))
        elif active:
            click.echo(client_text.table(client.list_jobs(states=ACTIVE), time.time()))
        if wait:
            with progress() as line:
                for left in client.until_idle(timeout=seconds):
                    line.show(f"waiting for {left} jobs to end" if left > 1 else "waiting for a job to end")
            check_idle(client)
    if not as_json() and (wait or not active):
        click.echo(drained(wait=wait))


def drained(*, wait: bool) -> str:
    """What is known when no job is seen any more."""
    return "drained: no job is active" if wait else "drained: no job that you may see is active"


def wait_seconds(timeout: str | None, *, wait: bool) -> float | None:
    """The time-out of a drain's wait; `None` for none.

    Raises:
        click.UsageError: there is one, and no wait.
        InvalidField: it is no duration.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout is for --wait")
    return None if timeout is None else patience(timeout, "--timeout")


def check_idle(client: Client) -> None:
    """See that no other job is active than the caller knows of.

    Raises:
        NotIdle: one is, which the caller may not see.
        CallFailed: the caller may not even know that.
    """
    if hidden := client.agent_info().active_jobs:
        raise NotIdle(hidden)


@click.command("undrain", cls=ClientCommand, help=_UNDRAIN_HELP)
def undrain() -> None:
    with connect() as client:
        client.undrain()
    click.echo(client_json.line({"draining": False}) if as_json() else "new jobs are taken")

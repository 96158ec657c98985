"""`worker-client`: the command line of an agent's clients.

Commands are imported when they are called, so that `worker-client --help` needs click and nothing else.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import NamedTuple, NoReturn, cast

import click

from jobworker import program
from jobworker.cli.client_options import fleet_options, shared_options, write_options

_NAME = "worker-client"
# By this variable a shell asks what can follow: click's name for it.
COMPLETE = "_WORKER_CLIENT_COMPLETE"


class _Entry(NamedTuple):
    module: str
    function: str
    help: str


COMMANDS = {
    "start": _Entry("client_start", "start", "Start a job and print its id."),
    "run": _Entry("client_run", "run", "Start a job, follow its output, exit with its exit code."),
    "stop": _Entry("client_jobs", "stop", "Stop a job and all of its processes."),
    "signal": _Entry("client_control", "signal", "Send a signal to a job's main process, or to all."),
    "write": _Entry("client_stdin", "write", "Write to a job's standard input."),
    "update": _Entry("client_update", "update", "Give a running job new limits."),
    "delete": _Entry("client_control", "delete", "Remove ended jobs with their output and files."),
    "query": _Entry("client_jobs", "query", "Show everything that is known of a job."),
    "stream": _Entry("client_stream", "stream", "Write a job's output; also called logs."),
    "list": _Entry("client_jobs", "list_jobs", "List the jobs of the host; also called ps."),
    "watch": _Entry("client_watch", "watch", "Show changes of jobs as they happen."),
    "top": _Entry("client_top", "top", "Show what jobs use, again and again."),
    "wait": _Entry("client_watch", "wait", "Wait until jobs have ended, and exit as they did."),
    "info": _Entry("client_info", "info", "Show what the agent is, and what it can enforce."),
    "drain": _Entry("client_drain", "drain", "Take no new jobs on the host."),
    "undrain": _Entry("client_drain", "undrain", "Take new jobs on the host again."),
    "reload": _Entry("client_reload", "reload", "Have the agent read its files anew."),
    "context": _Entry("client_context", "context", "List your contexts, or make one the current one."),
    "doctor": _Entry("client_doctor", "doctor", "Find what is wrong between you and the agent."),
    "completion": _Entry("client_completion", "completion", "Have your shell complete what you type."),
    "version": _Entry("client_info", "version", "Print the version of this client."),
}
_ALIASES = {"logs": "stream", "ps": "list"}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - likewise
        entry = COMMANDS.get(_ALIASES.get(cmd_name, cmd_name))
        if entry is None:
            return None
        module = importlib.import_module(f"jobworker.cli.{entry.module}")
        return cast("click.Command", getattr(module, entry.function))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])
        write_options(self, ctx, formatter)


_HELP = """Run commands on a host through its jobworker agent.

\b
worker-client run --cpu 50% --memory 256M -- make all
worker-client start sleep 1000
worker-client list

Where the agent is, and who you are, comes from the options below, from the environment variables named with
them, or from a context file. Every command has a --help of its own.

\b
worker-client --inventory hosts.yml --group web run -- uptime

So run, start, stop, query, list, info, drain, undrain, reload and top go to many hosts at once.

\b
Exit codes: 0 done, 1 failed, 2 not understood, 4 not allowed, 130 interrupted.
`run`, `wait` and `drain` have more; their help tells them. Of many hosts: 0 all
done, 1 some failed, 3 some not reached and none failed, 130 interrupted.
"""


@click.group(
    cls=_Commands,
    params=[*shared_options(), *fleet_options()],
    help=_HELP,
    context_settings=program.SETTINGS,
)
@program.version
def cli() -> None:
    pass


def main() -> NoReturn:
    if os.environ.get(COMPLETE):
        importlib.import_module("jobworker.cli.client_completion")
        # Which tells what can follow, and ends.
        cli.main(prog_name=_NAME)
    program.main(_NAME, cli)


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    return program.run(_NAME, cli, args)

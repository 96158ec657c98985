"""What is offered for arguments when somebody presses Tab: jobs, labels, signals and contexts.

Silently and soon, or not at all. Nothing but plain words is offered, since they go into a command line. Imports
click and nothing else, as the options of every command do.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from jobworker.api.v1.job_pb2 import Job
    from jobworker.jobs import State

    Offer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

# Whoever has pressed Tab waits, so many seconds at the most.
_PATIENCE = 2.0
_MOST = 100
# An agent finds ids by no shorter beginning.
_SHORTEST_PREFIX = 4
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@=-]*")


def jobs(*states: State) -> Offer:
    """Ids of jobs, the newest first: of those in one of these states, or of all."""

    def offer(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        prefix = incomplete if len(incomplete) >= _SHORTEST_PREFIX else ""
        found = [(job.id, _described(job)) for job in _newest(ctx, states, prefix)]
        return _plain(found, incomplete)

    return offer


def labels(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Keys of the newest jobs' labels; behind a key and `=` the values that it has."""
    found = [label for job in _newest(ctx) for label in job.labels.items()]
    whole = "=" in incomplete
    words = sorted({f"{key}={value}" if whole else f"{key}=" for key, value in found})
    return _plain([(word, "") for word in words], incomplete)


def signals(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of signals, with or without SIG as they were begun."""
    names = [each.name for each in signal.Signals]
    bare = [(name.removeprefix("SIG"), "") for name in names]
    return _plain(bare, incomplete.upper()) or _plain([(name, "") for name in names], incomplete.upper())


def contexts(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Contexts of the context file."""
    from jobworker.client import context  # noqa: PLC0415 - `--help` must not wait for it
    from jobworker.errors import InvalidField  # noqa: PLC0415 - likewise

    names: tuple[str, ...] = ()
    with suppress(InvalidField):
        names = tuple(context.read(context.config_path(os.environ)).contexts)
    return _plain([(name, "") for name in names], incomplete)


def _plain(words: Iterable[tuple[str, str]], incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem  # noqa: PLC0415 - likewise

    return [
        CompletionItem(word, help=told or None)
        for word, told in words
        if word.startswith(incomplete) and _PLAIN.fullmatch(word)
    ]


def _described(job: Job) -> str:
    from jobworker.cli import client_text  # noqa: PLC0415 - likewise

    return f"{client_text.status(job)} {client_text.cut(client_text.command(job))}"


def _newest(ctx: click.Context, states: Iterable[State] = (), prefix: str = "") -> Iterator[Job]:
    """The newest jobs of the agent that the command line names; none if it cannot be asked."""
    from jobworker.cli.client_command import connect  # noqa: PLC0415 - likewise
    from jobworker.errors import JobWorkerError  # noqa: PLC0415 - likewise

    with suppress(JobWorkerError), ctx.scope(cleanup=False), connect(_PATIENCE) as client:
        # Also finding out why an agent does not answer takes its time, and nobody wants to know here.
        signal.signal(signal.SIGALRM, lambda _number, _frame: os._exit(0))
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
        yield from islice(client.list_jobs(states=states, id_prefix=prefix), _MOST)

"""What all commands of worker-client share: the connection, and how they fail."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from jobworker import client, program
from jobworker.cli import client_options
from jobworker.client import context
from jobworker.client.failures import AmbiguousId, CallFailed, CredentialsUnusable, SettingsMissing
from jobworker.errors import InvalidField, JobWorkerError
from jobworker.jobs import check_request_id
from jobworker.printable import inline
from jobworker.program import FAILED, NOT_UNDERSTOOD

if TYPE_CHECKING:
    from jobworker.client.rpc.client import Client

NOT_ALLOWED = 4

_CODES = {"INVALID_ARGUMENT": NOT_UNDERSTOOD, "PERMISSION_DENIED": NOT_ALLOWED, "UNAUTHENTICATED": NOT_ALLOWED}


class ClientCommand(click.Command):
    """A command that takes the options of every command, and tells its failure in one sentence.

    The function behind it returns the exit code, `None` for 0.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(client_options.shared_options())
        if self.name in client_options.ON_MANY_HOSTS:
            # Behind `list` and `top`, --limit is their own.
            own = {param.name for param in self.params}
            self.params.extend(each for each in client_options.fleet_options() if each.name not in own)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        client_options.write_options(self, ctx, formatter)

    def invoke(self, ctx: click.Context) -> int:
        try:
            many = client_options.for_many_hosts(ctx)
            status = _invoke_on_many_hosts(ctx) if many else super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            complain(program.told(error))
            return self.exit_code(error)
        except JobWorkerError as error:
            complain(str(error))
            return self.exit_code(error)
        return status or 0

    def exit_code(self, error: Exception) -> int:
        """The exit code for a failure."""
        if isinstance(error, InvalidField | SettingsMissing | CredentialsUnusable | AmbiguousId):
            return NOT_UNDERSTOOD
        return _CODES.get(error.code, FAILED) if isinstance(error, CallFailed) else FAILED


def _invoke_on_many_hosts(ctx: click.Context) -> int:
    from jobworker.cli.fleet import command  # noqa: PLC0415 - no command for one host has need of it

    return command.invoke(ctx)


def connect(timeout: float = 30.0) -> Client:
    """The agent that options, environment and context file name.

    Args:
        timeout: for each call that is not a stream of answers, in seconds.

    Raises:
        JobWorkerError: they do not name one, or not in a way that works.
    """
    ctx = click.get_current_context()
    flags, chosen = client_options.connection(ctx), client_options.value(ctx, "context")
    return connect_to(context.endpoint(flags, os.environ, chosen), request_id(ctx), timeout=timeout)


def connect_to(endpoint: client.Endpoint, named: str, **options: float) -> Client:
    """A client as `client.connect` makes it, whose errors are told once, by this program.

    Args:
        endpoint: the agent.
        named: the id of all its requests.
        options: see `client.connect`.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return client.connect(endpoint, request_id=named, traceparent=_traceparent(), **options)


def _traceparent() -> str:
    """The span that this program is run in, as OpenTelemetry has it in the environment; empty for none.

    What is there by somebody else's doing is no reason to fail.
    """
    from jobworker.client import tracecontext  # noqa: PLC0415 - `--help` need not wait for it

    with suppress(InvalidField):
        return tracecontext.check(os.environ.get("TRACEPARENT", ""), "TRACEPARENT")
    return ""


def request_id(ctx: click.Context) -> str:
    """What the command's requests are to be called; empty for nothing.

    Raises:
        InvalidField: they can't be called that.
    """
    given = client_options.value(ctx, "request_id")
    if said := given or os.environ.get("JOBWORKER_REQUEST_ID", ""):
        check_request_id(said, "--request-id" if given else "JOBWORKER_REQUEST_ID")
    return said


def as_json() -> bool:
    return client_options.value(click.get_current_context(), "format") == "json"


def complain(sentence: str) -> None:
    program.complain("worker-client", inline(sentence))

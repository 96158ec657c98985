"""`worker-agent policy`: check a policy file, and ask it what it would decide and why."""

from __future__ import annotations

import sys
from typing import Any, BinaryIO

import click

from jobworker import codec
from jobworker.cli import checked_file
from jobworker.cli.privileges import give_up
from jobworker.limits import KINDS
from jobworker.policy import RPCS, Policy
from jobworker.sandbox import PROFILES

_DENIED = 1

_TEST = """\
Say what a policy decides about a call, which rule does, and why those before it do not.

The role comes first: no rule allows what the certificate's role does not. Exit status: 0 if the call is allowed, 1
if it is denied, 2 if FILE is no policy, or the options do not describe a call.

\b
Examples:
  worker-agent policy test policy.yaml --as spiffe://example.org/user/alice --rpc Start \\
    --command '/usr/bin/make -j4' --user www-data --memory 512M
  worker-agent policy test policy.yaml --as spiffe://example.org/user/alice --rpc Stop \\
    --job-owner spiffe://example.org/user/bob --job-label team=build
"""


@click.group()
def policy() -> None:
    """Check a policy, and ask it what it decides."""


@policy.command(short_help="Check a policy file.")
@click.argument("file", type=click.File("rb"), default="-")
def check(file: BinaryIO) -> None:
    """Check a policy file (or standard input): the line and field of each mistake, or that there is none."""
    rules = _load(file).rules
    click.echo(f"the policy is good: {len(rules)} rule{'s' if len(rules) != 1 else ''}")


@policy.command(hidden=True)
def canonical() -> None:
    """Read a policy from standard input and print it as the agent reads it.

    As root, gives up its privileges before it looks at the input.
    """
    from jobworker.settings import policy_file  # noqa: F401, PLC0415 - while its files can be read

    give_up()
    sys.stdout.buffer.write(codec.dumps(_load(sys.stdin.buffer)))


@policy.command(help=_TEST, short_help="Ask a policy what it decides about a call, and why.")
@click.argument("file", type=click.File("rb"))
@click.option("--as", "principal", required=True, metavar="URI", help="The caller's identity.")
@click.option("--role", type=click.Choice(["READER", "WRITER"]), default="WRITER", show_default=True)
@click.option("--rpc", type=click.Choice(RPCS), metavar="CALL", required=True, help=f"One of {', '.join(RPCS)}.")
@click.option("--command", metavar="WORDS", help="Of a start: the command line, quoted as for a shell.")
@click.option("--user", metavar="NAME", default="", help="Of a start: the user that the job is to run as.")
@click.option("--sandbox", type=click.Choice(PROFILES), help="Of a start: standard by default.")
@click.option("--env", metavar="NAME", multiple=True, help="Of a start: a variable that it sets. Repeatable.")
@click.option("--workdir", metavar="DIR", default="", help="Of a start: the directory to start in.")
@click.option("--stdin", is_flag=True, help="Of a start: the job is given something to read.")
@click.option("--label", metavar="KEY=VALUE", multiple=True, help="Of a start. Repeatable.")
@click.option("--job-owner", metavar="URI", help="Who started the job that the call names, or `self`.")
@click.option("--job-label", metavar="KEY=VALUE", multiple=True, help="Of that job. Repeatable.")
def test(file: BinaryIO, **options: Any) -> None:
    from jobworker.cli import policy_answer  # noqa: PLC0415 - `--help` need not wait for it

    allowed, text = policy_answer.explain(_load(file), options)
    click.echo(text)
    sys.exit(0 if allowed else _DENIED)


for _kind in KINDS:
    test = click.option(f"--{_kind.name.replace('_', '-')}", metavar="LIMIT", help="Of a start.")(test)


def _load(file: BinaryIO) -> Policy:
    from jobworker.settings import policy_file  # noqa: PLC0415 - brings in the YAML parser

    return checked_file.load(file, "policy", policy_file.load)

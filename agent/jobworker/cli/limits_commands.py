"""`worker-agent limits`: check a limits file."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from jobworker import codec
from jobworker.cli import checked_file
from jobworker.cli.privileges import give_up
from jobworker.limits import BY_NAME, LimitProfiles, Limits


@click.group()
def limits() -> None:
    """Check profiles and caps of limits."""


@limits.command(short_help="Check a limits file.")
@click.argument("file", type=click.File("rb"), default="-")
def check(file: BinaryIO) -> None:
    """Check a limits file (or standard input): the line and field of each mistake, or what it says.

    Exit status: 0 if it is good, 2 if it is not.
    """
    made = _load(file)
    count = len(made.profiles)
    click.echo(f"the limits are good: {count} profile{'s' if count != 1 else ''}")
    for profile in made.profiles:
        mark = " (default)" if profile.name == made.default else ""
        click.echo(f"  {profile.name}{mark}: {_words(profile.limits)}")
    if any(made.caps.given()):
        click.echo(f"  at most: {_words(made.caps)}")


@limits.command(hidden=True)
def canonical() -> None:
    """Read a limits file from standard input and print it as the agent reads it.

    As root, gives up its privileges before it looks at the input.
    """
    from jobworker.settings import limits_file  # noqa: F401, PLC0415 - while its files can be read

    give_up()
    sys.stdout.buffer.write(codec.dumps(_load(sys.stdin.buffer)))


def _load(file: BinaryIO) -> LimitProfiles:
    from jobworker.settings import limits_file  # noqa: PLC0415 - brings in the YAML parser

    return checked_file.load(file, "limits file", limits_file.load)


def _words(limits: Limits) -> str:
    return ", ".join(f"{name} {BY_NAME[name].show(value)}" for name, value in limits.given())

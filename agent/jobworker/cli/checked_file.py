"""Files in YAML that the agent's administrator writes: read, or what is wrong with them said."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import BinaryIO, NoReturn, TypeVar

import click

from jobworker.printable import inline

T = TypeVar("T")

WRONG = 2


def load(file: BinaryIO, what: str, read: Callable[[str], T]) -> T:
    """What the file holds; ends the process with `WRONG` if that is no such file.

    Args:
        file: that was opened.
        what: it is to be, for people.
        read: of `settings.load`, `settings.policy_file` or `settings.limits_file`.
    """
    # Brings in the YAML parser.
    from jobworker.settings import yaml_reader  # noqa: PLC0415

    # Who hands it over knows what it is called.
    prefix = "" if file.name.startswith("<") else f"{file.name}: "
    try:
        return read(file.read(yaml_reader.MAX_FILE_BYTES + 1).decode("utf-8"))
    except yaml_reader.Mistakes as error:
        fail(*(f"{prefix}{mistake}" for mistake in error.mistakes))
    except UnicodeDecodeError as error:
        fail(f"{prefix}the {what} is not text in UTF-8, from byte {error.start} on; write it anew with an editor")


def fail(*problems: str) -> NoReturn:
    for problem in problems:
        click.echo(inline(problem), err=True)
    sys.exit(WRONG)

"""What the commands share: options and passphrases."""

from __future__ import annotations

import functools
import os
import stat
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import click

from jobworker.errors import InvalidField, PkiProblem
from jobworker_pki import home
from jobworker_pki.home import Home
from jobworker_pki.keys import Ask

Read = Callable[[str], bytes]

MINIMUM_LENGTH = 8
_MAX_BYTES = 4096

directory = click.option(
    "--dir",
    "directory",
    metavar="DIR",
    default=".",
    envvar="JOBWORKER_PKI",
    show_envvar=True,
    help="The PKI's directory; the current one if not given.",
    type=click.Path(),
)
passphrase_file = click.option(
    "--passphrase-file",
    metavar="FILE",
    envvar="JOBWORKER_PKI_PASSPHRASE_FILE",
    show_envvar=True,
    type=click.Path(),
    help="Holds the CA keys' passphrase in its first line; asked for at the terminal if not given.",
)


def opened(path: str, file: str | None) -> AbstractContextManager[Home]:
    """The PKI at `path`, its passphrase to be had from `file` or the terminal."""
    return home.opened(path, asking(file))


def once() -> Read:
    """Reads a file's passphrase as often as it is asked to, and the file once: it may be a pipe."""
    return functools.cache(read_passphrase)


def asking(file: str | None, read: Read | None = None) -> Ask:
    """How an encrypted key's passphrase is had."""
    read = read or once()

    def ask(key: str) -> bytes:
        if file:
            return read(file)
        return _prompt(f"Passphrase of {key}", confirm=False)

    return ask


def choose(file: str | None, read: Read, *, none: bool) -> bytes | None:
    """The passphrase for new keys."""
    if none:
        return None
    if file:
        passphrase = read(file)
    else:
        passphrase = _prompt("Passphrase for the CA keys (--no-passphrase leaves them open)", confirm=True)
    if len(passphrase) < MINIMUM_LENGTH:
        raise InvalidField("passphrase", f"has fewer than {MINIMUM_LENGTH} characters", "several random words")
    return passphrase


def _prompt(text: str, *, confirm: bool) -> bytes:
    if not sys.stdin.isatty():
        raise PkiProblem("passphrase", "there is no terminal to ask for it", "give --passphrase-file FILE")
    answer: str = click.prompt(text, hide_input=True, confirmation_prompt=confirm, err=True)
    return answer.encode()


def read_passphrase(path: str) -> bytes:
    """A file's first line.

    Raises:
        PkiProblem: it cannot be read, is empty, or others can read it.
    """
    try:
        with open(path, "rb") as file:
            mode, content = os.fstat(file.fileno()).st_mode, file.read(_MAX_BYTES)
    except OSError as error:
        raise PkiProblem(path, f"cannot be read: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & 0o077:
        raise PkiProblem(path, "can be read by others", f"chmod 600 {path}")
    passphrase = content.partition(b"\n")[0].rstrip(b"\r")
    if not passphrase:
        raise PkiProblem(path, "holds no passphrase in its first line")
    return passphrase

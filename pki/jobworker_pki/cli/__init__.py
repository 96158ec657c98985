"""worker-pki: the commands, each a thin shell around the library beside it."""

from __future__ import annotations

from typing import NoReturn

import click

from jobworker import program
from jobworker_pki.cli.dev import dev
from jobworker_pki.cli.init import init
from jobworker_pki.cli.issue import issue, sign
from jobworker_pki.cli.renew import renew
from jobworker_pki.cli.revoke import crl, revoke
from jobworker_pki.cli.show import show

_MAIN = """\
Make the certificates that jobworker's agents and clients trust.

\b
From nothing to a host and a user:
  worker-pki init pki --trust-domain example.org
  worker-pki sign agent.csr --san build7.example.org --dir pki
  worker-pki issue user alice --role WRITER --dir pki
"""


@click.group(help=_MAIN, context_settings=program.SETTINGS)
@program.version
def cli() -> None:
    """All commands."""


for command in (init, issue, sign, renew, revoke, crl, show, dev):
    cli.add_command(command)


def main() -> NoReturn:
    program.main("worker-pki", cli)

"""worker-pki renew."""

from __future__ import annotations

from datetime import timedelta

import click

from jobworker import program
from jobworker.errors import JobWorkerError
from jobworker_pki import renewal
from jobworker_pki.cli.common import directory, opened, passphrase_file
from jobworker_pki.reading import moment
from jobworker_pki.renewal import Outcome

_RENEW = """\
Renew certificates in their files; role and key stay, and names too unless you give others.

Before two thirds of the life have passed it does nothing and succeeds, so that a timer may run it as
often as it likes. What cannot be renewed is named, and the others are renewed all the same. The
intermediate is renewed in the same way, with the root's key at hand.

\b
Example:
  worker-pki renew pki/hosts/*.pem --dir pki --passphrase-file /run/credentials/pki

A host that is called otherwise from now on is renewed at once, and not again when its certificate says so
already. The one before stays valid for the names that it bears, until it ends or its key is revoked.

\b
  worker-pki renew pki/hosts/build7.example.org.pem --san build7.example.org --san 10.0.0.7
"""


@click.command(help=_RENEW, short_help="Renew a certificate when two thirds of its life have passed.")
@click.argument("certificates", metavar="CERT...", nargs=-1, required=True, type=click.Path(dir_okay=False))
@click.option("--force", is_flag=True, help="Also before its time.")
@click.option("--new-key", is_flag=True, help="Make a new key too, NAME.key beside NAME.pem; not for a CA.")
@click.option("--days", type=click.IntRange(1, 3650), help="Of the new one; those of the old one if not given.")
@click.option("--san", "names", metavar="NAME_OR_IP", multiple=True, help="A name of the host; may be repeated.")
@directory
@passphrase_file
def renew(
    certificates: tuple[str, ...],
    force: bool,  # noqa: FBT001 (click passes it by name)
    new_key: bool,  # noqa: FBT001
    days: int | None,
    names: tuple[str, ...],
    directory: str,
    passphrase_file: str | None,
) -> None:
    if names and len(certificates) > 1:
        raise click.UsageError("--san gives names to one host: renew one certificate at a time with it")
    life, failed = timedelta(days=days) if days else None, 0
    with opened(directory, passphrase_file) as home:
        for path in certificates:
            try:
                outcome = renewal.renew(home, path, life=life, force=force, new_key=new_key, names=names)
            except JobWorkerError as error:
                program.complain("worker-pki", str(error))
                failed += 1
            else:
                _say(path, outcome)
    if failed:
        raise click.ClickException(f"{failed} of {len(certificates)} certificates were not renewed")


def _say(path: str, outcome: Outcome) -> None:
    what = "renewed" if outcome.made else "not due"
    end = moment(outcome.certificate.not_valid_after_utc)
    click.echo(f"{path}: {what}; valid until {end}, to be renewed from {moment(outcome.due)} on")

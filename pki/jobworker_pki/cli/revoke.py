"""worker-pki revoke and crl."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from jobworker_pki import home as homes
from jobworker_pki import revocation
from jobworker_pki.cli.common import directory, opened, passphrase_file
from jobworker_pki.reading import moment

_REVOKE = """\
Revoke a certificate, by its file or by its serial number in hexadecimal.

With it go the others of the same key: a renewed certificate and those that it replaced.
It counts from the moment that the agents have the next list: run `worker-pki crl`, and hand it out.

\b
Example:
  worker-pki revoke pki/users/alice.pem --reason keyCompromise --dir pki
  worker-pki crl --dir pki
"""

_CRL = """\
Sign a revocation list (X.509 CRL) and put it into intermediate.crl or root.crl.

Agents refuse everybody once the list they have is past its date: sign and hand out the next in time. With --if-due
that is left to a timer: a list is signed once two thirds of the life of the last one have passed, or it lacks
a revocation.

\b
Examples:
  worker-pki crl --days 30 --dir pki
  worker-pki crl --days 30 --if-due --dir pki
"""


@click.command(help=_REVOKE, short_help="Revoke a certificate.")
@click.argument("certificate", metavar="CERT|SERIAL")
@click.option(
    "--reason",
    type=click.Choice(revocation.REASONS),
    default=revocation.UNSPECIFIED,
    show_default=True,
    help="As RFC 5280 calls it.",
)
@directory
def revoke(certificate: str, reason: str, directory: str) -> None:
    with opened(directory, None) as home:
        records, fresh = revocation.revoke(home, certificate, reason)
    for record in records:
        whose = f"for the list of the {record.ca}"
        click.echo(f"{record.serial} ({record.subject}): revoked at {record.time}, {record.reason}, {whose}")
    if fresh:
        ca = "" if records[0].ca == homes.INTERMEDIATE else f" --ca {records[0].ca}"
        click.echo(f"next: worker-pki crl --dir {directory}{ca}, and hand the list to the agents", err=True)


@click.command(help=_CRL, short_help="Sign a list of what is revoked.")
@click.option("--days", type=click.IntRange(1, 3650), default=30, show_default=True, help="Until the next is due.")
@click.option(
    "--ca",
    type=click.Choice([homes.INTERMEDIATE, homes.ROOT]),
    default=homes.INTERMEDIATE,
    show_default=True,
    help="Whose; the root's list is about the intermediate.",
)
@click.option("--if-due", is_flag=True, help="Only if the list that there is will not do.")
@directory
@passphrase_file
def crl(
    days: int,
    ca: str,
    if_due: bool,  # noqa: FBT001 (click passes it by name)
    directory: str,
    passphrase_file: str | None,
) -> None:
    with opened(directory, passphrase_file) as home:
        if if_due and (due := revocation.due(home, ca)) > datetime.now(UTC):
            click.echo(f"{home.store.path_of(f'{ca}.crl')}: not due; to be signed from {moment(due)} on")
            return
        path, made = revocation.crl(home, ca, timedelta(days=days))
    end = made.next_update_utc
    click.echo(f"{path}: {len(list(made))} revoked; the next is due by {moment(end) if end else 'no date'}")

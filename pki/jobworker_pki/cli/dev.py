"""worker-pki dev."""

from __future__ import annotations

import click

from jobworker.identity import DEFAULT_ROLE_OID
from jobworker_pki import dev as dev_set

_DEV = """\
Make a development PKI in DIR, for your own machine.

\b
It writes, each with a key beside it (RSA-4096, SHA-256):
  ca.pem      the CA, good for ten years; "DEV" is in its name
  server.pem  for the agent: localhost, 127.0.0.1, ::1, this host's name, each --host
  writer.pem  for a client that may do everything
  reader.pem  for a client that may query, list and stream

Run again it makes what is missing and leaves the rest alone. If something is expired or does not fit
the rest, it says what, and changes nothing; --renew makes it anew.

\b
Example:
  worker-pki dev .dev/pki --host build7.example.org
  openssl x509 -in .dev/pki/writer.pem -noout -text
"""


@click.command(help=_DEV, short_help="Make a development CA, server and client certificates.")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
@click.option(
    "--host",
    "hosts",
    metavar="NAME_OR_IP",
    multiple=True,
    help="A further name or address the server is reached under; may be repeated.",
)
@click.option("--trust-domain", default=dev_set.DEFAULT_TRUST_DOMAIN, show_default=True, help="Of the identities.")
@click.option("--role-oid", default=DEFAULT_ROLE_OID, show_default=True, help="Of the extension with the role.")
@click.option("--renew", is_flag=True, help="Make the certificates and keys anew; the CA only if it is faulty.")
def dev(directory: str, hosts: tuple[str, ...], trust_domain: str, role_oid: str, renew: bool) -> None:  # noqa: FBT001 (click passes it by name)
    wanted = dev_set.Wanted(hosts, trust_domain, role_oid)
    outcome = dev_set.ensure(directory, wanted, renew=renew, progress=lambda text: click.echo(text, err=True))
    what = f"made {', '.join(outcome.made)}" if outcome.made else "nothing to do, the set is complete"
    click.echo(f"{directory}: {what}; {outcome.authority}, valid until {outcome.expires:%Y-%m-%d}")

"""worker-pki show."""

from __future__ import annotations

from datetime import UTC, datetime

import click
from cryptography import x509

from jobworker.identity import DEFAULT_ROLE_OID
from jobworker_pki import home as homes
from jobworker_pki import index
from jobworker_pki import show as shown
from jobworker_pki.cli.common import asking
from jobworker_pki.show import Context

_SHOW = """\
Tell what is in FILE: a certificate, a bundle, a signing request or a revocation list, in PEM form.

Of a certificate it tells too whether the agent would accept it, and if not, why.

\b
Example:
  worker-pki show pki/users/alice.pem --dir pki
"""


@click.command(help=_SHOW, short_help="Tell what a certificate, request or revocation list says.")
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@click.option("--dir", "directory", metavar="DIR", help="The PKI whose CA, role OID and revocations count.")
@click.option("--ca", metavar="FILE", help="The CAs that the agent trusts.")
@click.option("--role-oid", default=DEFAULT_ROLE_OID, show_default=True, help="Of the extension with the role.")
def show(file: str, directory: str | None, ca: str | None, role_oid: str) -> None:
    trusted = shown.certificates(ca) if ca else ()
    context = Context(datetime.now(UTC), role_oid, trusted)
    click.echo(shown.text(file, _of_home(directory, trusted) if directory else context))


def _of_home(directory: str, trusted: tuple[x509.Certificate, ...]) -> Context:
    with homes.opened(directory, asking(None)) as home:
        root, intermediate = home.certificate(homes.ROOT), home.certificate(homes.INTERMEDIATE)
        # Agents are given the root alone, so a file has to bring the intermediate.
        trusted = trusted or (root,)
        untrusted = tuple(ca for ca in (root, intermediate) if ca not in trusted)
        revoked = frozenset(index.revocations(index.records(home.store)))
        return Context(datetime.now(UTC), home.settings.role_oid, trusted, untrusted, revoked)

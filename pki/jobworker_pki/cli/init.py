"""worker-pki init."""

from __future__ import annotations

import click

from jobworker.identity import DEFAULT_ROLE_OID
from jobworker_pki import home
from jobworker_pki.cli.common import asking, choose, once, passphrase_file
from jobworker_pki.settings import Settings

_INIT = """\
Make a PKI in DIR: a root CA for twenty years, and an intermediate that issues, for five.

The root's key is needed again only to renew or revoke the intermediate: take DIR/root.key offline.
Both keys are encrypted with a passphrase. The intermediate is held to the trust domain, and to the
domains if there are any, by name constraints; to the networks only by what worker-pki signs.

DIR is made, or has to be empty, and is closed to others. Run again it completes what is missing, and
leaves the rest alone.

\b
Example:
  worker-pki init pki --trust-domain example.org --domain example.org --network 10.0.0.0/8
"""


@click.command(help=_INIT, short_help="Make a root and an intermediate CA.")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
@click.option("--trust-domain", required=True, help="Of the users' identities, e.g. example.org.")
@click.option(
    "--domain", "domains", metavar="NAME", multiple=True, help="Hosts are named in or below it; may be repeated."
)
@click.option(
    "--network", "networks", metavar="CIDR", multiple=True, help="Hosts' addresses lie in it; may be repeated."
)
@click.option("--role-oid", default=DEFAULT_ROLE_OID, show_default=True, help="Of the extension with the role.")
@passphrase_file
@click.option("--no-passphrase", is_flag=True, help="Leave the CA keys unencrypted.")
def init(
    directory: str,
    trust_domain: str,
    domains: tuple[str, ...],
    networks: tuple[str, ...],
    role_oid: str,
    passphrase_file: str | None,
    no_passphrase: bool,  # noqa: FBT001 (click passes it by name)
) -> None:
    wanted, read = Settings(trust_domain, role_oid, domains, networks), once()
    made = home.ensure(
        directory,
        wanted,
        lambda: choose(passphrase_file, read, none=no_passphrase),
        asking(passphrase_file, read),
        lambda text: click.echo(text, err=True),
    )
    if not made:
        click.echo(f"{directory}: nothing to do, the PKI is complete")
        return
    click.echo(f"{directory}: made {', '.join(made)}; agents and clients trust {directory}/ca.pem")
    click.echo(f"next: take {directory}/root.key offline; it is needed once in some years", err=True)

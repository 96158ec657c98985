"""worker-pki issue and sign."""

from __future__ import annotations

from datetime import timedelta

import click

from jobworker.errors import InvalidField
from jobworker.identity import Role
from jobworker.printable import inline
from jobworker_pki import issuing, keys, requests
from jobworker_pki.cli.common import directory, opened, passphrase_file
from jobworker_pki.issuing import Outcome
from jobworker_pki.reading import moment

_ISSUE = """\
Make a key and a certificate for a host or a user.

Where the key can be made at its place instead, do that, and use `worker-pki sign`.

\b
Examples:
  worker-pki issue host build7.example.org --san 10.0.0.7 --dir pki
  worker-pki issue user alice --role WRITER --days 1 --dir pki
"""

_ISSUE_HOST = """\
Make hosts/NAME.pem and hosts/NAME.key for an agent that is reached as NAME.

Run again it changes nothing. A certificate that is there and says something else is not replaced.

\b
Example:
  worker-pki issue host build7.example.org --san 10.0.0.7 --dir pki
"""

_ISSUE_USER = """\
Make users/NAME.pem and users/NAME.key for a client.

Its identity is spiffe://TRUST-DOMAIN/user/NAME. Run again it changes nothing. A certificate that is
there and says something else is not replaced.

\b
Example:
  worker-pki issue user alice --role WRITER --days 1 --dir pki
"""

_SIGN = """\
Make a certificate for the key of a request.

The request must be signed with its key, which must be RSA with 4096 bits or more. Of what else it asks
for only names count, and only those that you confirm; extensions are never copied. The certificate
goes to hosts/NAME.pem or users/NAME.pem, with the chain behind it.

\b
Example, the first line on the host:
  openssl req -new -newkey rsa:4096 -noenc -keyout agent.key -out agent.csr \\
    -subj /CN=build7.example.org -addext subjectAltName=DNS:build7.example.org
  worker-pki sign agent.csr --san build7.example.org --dir pki
  worker-pki sign alice.csr --name alice --role READER --dir pki
"""


_HOST_DAYS, _USER_DAYS = 30, 1
_DAYS = click.IntRange(1, 3650)
_ROLES = click.Choice([role.value for role in Role])
_bits = click.option(
    "--key-bits",
    type=click.IntRange(keys.KEY_BITS, keys.MAX_BITS),
    default=keys.KEY_BITS,
    show_default=True,
    help="Of the RSA key.",
)


@click.group(help=_ISSUE, short_help="Make a key and a certificate for a host or a user.")
def issue() -> None:
    """Both kinds."""


@issue.command("host", help=_ISSUE_HOST, short_help="Make a key and a certificate for an agent.")
@click.argument("name", metavar="NAME")
@click.option(
    "--san", "more", metavar="NAME_OR_IP", multiple=True, help="A further name or address; may be repeated."
)
@click.option("--days", type=_DAYS, default=_HOST_DAYS, show_default=True, help="Of life.")
@_bits
@directory
@passphrase_file
def issue_host(
    name: str, more: tuple[str, ...], days: int, key_bits: int, directory: str, passphrase_file: str | None
) -> None:
    with opened(directory, passphrase_file) as home:
        outcome = issuing.issue(home, issuing.host(home, name, more, timedelta(days=days)), key_bits)
    _say(outcome)


@issue.command("user", help=_ISSUE_USER, short_help="Make a key and a certificate for a client.")
@click.argument("name", metavar="NAME")
@click.option("--role", type=_ROLES, required=True, help="What the user may do.")
@click.option("--days", type=_DAYS, default=_USER_DAYS, show_default=True, help="Of life.")
@_bits
@directory
@passphrase_file
def issue_user(
    name: str, role: str, days: int, key_bits: int, directory: str, passphrase_file: str | None
) -> None:
    with opened(directory, passphrase_file) as home:
        leaf = issuing.user(home, issuing.check_file_name(name), Role(role), timedelta(days=days))
        outcome = issuing.issue(home, leaf, key_bits)
    _say(outcome)


@click.command(help=_SIGN, short_help="Sign the request of a host or a user, whose key stays there.")
@click.argument("request_file", metavar="CSR", type=click.Path(dir_okay=False))
@click.option(
    "--san", "confirmed", metavar="NAME_OR_IP", multiple=True, help="A host name to grant; may be repeated."
)
@click.option("--accept-names", is_flag=True, help="Grant all host names that are asked for.")
@click.option(
    "--name", metavar="NAME", default="", help="Of the file, and of the user; a host's first name if not given."
)
@click.option("--role", type=_ROLES, help="Make it a user's, with this role, called --name.")
@click.option("--days", type=_DAYS, help="Of life; 30 for a host, 1 for a user if not given.")
@directory
@passphrase_file
def sign(
    request_file: str,
    confirmed: tuple[str, ...],
    accept_names: bool,  # noqa: FBT001 (click passes it by name)
    name: str,
    role: str | None,
    days: int | None,
    directory: str,
    passphrase_file: str | None,
) -> None:
    with opened(directory, passphrase_file) as home:
        request = requests.read(request_file)
        if role:
            if confirmed or accept_names or not name:
                raise InvalidField("role", "a user is confirmed by --name alone", "--name alice --role READER")
            life = timedelta(days=days or _USER_DAYS)
            leaf = issuing.requested_user(home, request, issuing.check_file_name(name), Role(role), life)
        else:
            names = request.confirmed(confirmed, accept=accept_names)
            leaf = issuing.requested_host(home, names, name, timedelta(days=days or _HOST_DAYS))
        outcome = issuing.sign(home, leaf, request)
    left_out = [each for each in request.names if each not in leaf.profile.names()]
    if left_out:
        click.echo(f"left out, though asked for: {inline(', '.join(left_out))}", err=True)
    _say(outcome)


def _say(outcome: Outcome) -> None:
    what = "made" if outcome.made else "nothing to do, it is there"
    click.echo(f"{outcome.path}: {what}; valid until {moment(outcome.certificate.not_valid_after_utc)}")

"""Who a peer is: roles, principals, and how a certificate carries them.

Stands alone (standard library only), so that issuing in `worker-pki` and reading in the gateway cannot
drift apart. A certificate names its bearer in one URI SAN, `spiffe://<trust domain>/user/<name>`, and holds
the role in a non-critical extension whose value is a DER UTF8String.
"""

from __future__ import annotations

import enum
import re
import time
from dataclasses import dataclass

from jobworker.errors import InvalidField, Unauthenticated

# 32473 is the enterprise number kept for examples (RFC 5612); an organisation puts its own in its place.
DEFAULT_ROLE_OID = "1.3.6.1.4.1.32473.1.1"

# X.660: below the root arcs 0 and 1 there are forty arcs each.
_OID = re.compile(r"(?:[01]\.(?:[0-9]|[123][0-9])|2\.(?:0|[1-9][0-9]{0,9}))(?:\.(?:0|[1-9][0-9]{0,9})){1,18}")
# Go's parser refuses an arc that reaches this.
_ARC_LIMIT = 2**31
_STANDARD_EXTENSIONS = "2.5.29."

_DER_UTF8STRING = 0x0C
# What identities begin with, and how a pattern of them may look.
_SCHEME, PATTERN = "spiffe://", "spiffe://example.org/user/ops-*"
_URI = re.compile(r"spiffe://(?P<domain>[a-z0-9][a-z0-9.-]{0,252})/user/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})")


class Role(enum.Enum):
    """What a client may do; a WRITER may do all that a READER may."""

    READER = "READER"
    WRITER = "WRITER"

    def includes(self, other: Role) -> bool:
        return self is other or self is Role.WRITER


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated peer.

    Attributes:
        uri: the URI SAN, which is the identity everything else refers to.
        serial: the certificate's serial number in lower-case hexadecimal.
    """

    uri: str
    role: Role
    serial: str


def encode_role(role: Role) -> bytes:
    """The extension's value: the role as a DER UTF8String."""
    text = role.value.encode()
    return bytes((_DER_UTF8STRING, len(text))) + text


def decode_role(der: bytes) -> Role:
    """Read an extension's value: exact DER, a known role, nothing behind it.

    Raises:
        Unauthenticated: anything else.
    """
    for role in Role:
        if der == encode_role(role):
            return role
    raise Unauthenticated(f"the certificate's role extension does not hold one of {', '.join(Role.__members__)}")


def user_uri(trust_domain: str, name: str) -> str:
    """The identity URI of a user.

    Raises:
        ValueError: the name or the trust domain has characters that an identity cannot have.
    """
    uri = f"spiffe://{trust_domain}/user/{name}"
    if not _URI.fullmatch(uri):
        raise ValueError(f"{uri!r} is not an identity; for example spiffe://example.org/user/alice")
    return uri


def check_role_oid(oid: str) -> str:
    """Return the dotted object identifier if it can name the role extension.

    Raises:
        ValueError: it is none, an arc is too large, or it is one of X.509's own extensions.
    """
    if not _OID.fullmatch(oid) or any(int(arc) >= _ARC_LIMIT for arc in oid.split(".")):
        raise ValueError(f"{oid!r:.80} is not an object identifier; for example {DEFAULT_ROLE_OID}")
    if oid.startswith(_STANDARD_EXTENSIONS):
        raise ValueError(f"{oid} belongs to X.509 itself; take one below your own enterprise number")
    return oid


def check_user_uri(uri: str) -> str:
    """Return the URI if it is an identity.

    Raises:
        Unauthenticated: it is not.
    """
    if not _URI.fullmatch(uri):
        problem = f"the certificate's URI {uri!r:.120} is not of the form spiffe://TRUST-DOMAIN/user/NAME"
        raise Unauthenticated(problem)
    return uri


def check_principal(field: str, uri: str) -> str:
    """Return the URI of a principal that somebody has written down.

    Raises:
        InvalidField: it is no identity, so nobody ever has it.
    """
    if not _URI.fullmatch(uri):
        problem = f"{uri!r:.80} is no principal's identity, which is {_SCHEME}TRUST-DOMAIN/user/NAME"
        raise InvalidField(field, problem, f"{_SCHEME}example.org/user/alice")
    return uri


def check_principals(field: str, pattern: str) -> str:
    """The same for a pattern, in which `*` stands for any characters."""
    if not pattern.startswith((_SCHEME, "*")):
        problem = f"{pattern!r:.80} is no principal's identity, which begins with {_SCHEME}"
        raise InvalidField(field, problem, PATTERN)
    return pattern


def check_dates(not_before: float, not_after: float, now: float) -> None:
    """Compare a certificate's dates with a time, all in seconds of Unix time.

    Raises:
        Unauthenticated: the certificate is not valid then.
    """
    if now < not_before:
        raise Unauthenticated(f"the certificate is valid from {utc(not_before)} on only")
    if now > not_after:
        raise Unauthenticated(f"the certificate expired at {utc(not_after)}")


def utc(seconds: float) -> str:
    """Seconds of Unix time, to be read."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))

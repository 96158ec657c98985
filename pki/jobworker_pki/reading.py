"""What a certificate says of its bearer, and whether the agent would take it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from jobworker import identity
from jobworker.errors import Unauthenticated
from jobworker.identity import Role, check_user_uri, decode_role
from jobworker.unreadable import UNREADABLE
from jobworker_pki import keys, profiles

E = TypeVar("E", bound=x509.ExtensionType)
Extended = (
    x509.Certificate | x509.CertificateSigningRequest | x509.CertificateRevocationList | x509.RevokedCertificate
)

HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


@dataclass(frozen=True, slots=True)
class User:
    """A client's identity and role."""

    uri: str
    role: Role

    @property
    def trust_domain(self) -> str:
        return self.uri.removeprefix("spiffe://").partition("/user/")[0]

    @property
    def name(self) -> str:
        return self.uri.partition("/user/")[2]


@dataclass(frozen=True, slots=True)
class Host:
    """The names and addresses of a server."""

    names: tuple[str, ...]


def bearer(certificate: x509.Certificate, role_oid: str) -> User | Host:
    """Whom a leaf is for, if the agent (of a server: its clients) would take it, whatever the time.

    Raises:
        Unauthenticated: it would be refused, and why.
    """
    try:
        return _bearer(certificate, role_oid)
    except UNREADABLE:
        raise Unauthenticated("the certificate cannot be read") from None


def check_dates(certificate: x509.Certificate, now: datetime) -> None:
    """Refuse a certificate that is not valid now.

    Raises:
        Unauthenticated: its time has not come, or is over.
    """
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    identity.check_dates(begin.timestamp(), end.timestamp(), now.timestamp())


def moment(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def is_ca(certificate: x509.Certificate) -> bool:
    constraints = extension(certificate, x509.BasicConstraints)
    return bool(constraints and constraints.ca)


def names(certificate: x509.Certificate | x509.CertificateSigningRequest) -> tuple[str, ...]:
    """The SAN, each name with its kind in front."""
    found = extension(certificate, x509.SubjectAlternativeName)
    return tuple(profiles.label(name) for name in found) if found else ()


def hosts(certificate: x509.Certificate | x509.CertificateSigningRequest) -> tuple[str, ...]:
    """The names and addresses in the SAN."""
    found = extension(certificate, x509.SubjectAlternativeName)
    wanted = (x509.DNSName, x509.IPAddress)
    return tuple(str(name.value) for name in found or () if isinstance(name, wanted))


def uris(certificate: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    found = extension(certificate, x509.SubjectAlternativeName)
    return found.get_values_for_type(x509.UniformResourceIdentifier) if found else []


def role_name(certificate: x509.Certificate, role_oid: str) -> str:
    """The role that a certificate carries; empty if none, or none that the agent takes."""
    with contextlib.suppress(Unauthenticated):
        return _role(certificate, role_oid).value
    return ""


def extension(extended: Extended, kind: type[E]) -> E | None:
    try:
        return extended.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _bearer(certificate: x509.Certificate, role_oid: str) -> User | Host:
    weak = keys.weakness(certificate.public_key())
    if weak:
        raise Unauthenticated(weak)
    if not isinstance(certificate.signature_hash_algorithm, HASHES):
        raise Unauthenticated("the certificate's signature is not made with SHA-256 or better")
    if is_ca(certificate):
        raise Unauthenticated("the certificate is a CA's; agents and clients take leaves only")
    usage = extension(certificate, x509.ExtendedKeyUsage)
    if usage and ExtendedKeyUsageOID.CLIENT_AUTH in usage:
        return _user(certificate, role_oid)
    if usage and ExtendedKeyUsageOID.SERVER_AUTH in usage:
        return _host(certificate)
    raise Unauthenticated("the certificate is meant for neither clients nor servers: it lacks the usage")


def _user(certificate: x509.Certificate, role_oid: str) -> User:
    found = uris(certificate)
    if len(found) != 1:
        raise Unauthenticated(f"the certificate holds {len(found)} URIs in place of one")
    return User(check_user_uri(found[0]), _role(certificate, role_oid))


def _role(certificate: x509.Certificate, role_oid: str) -> Role:
    try:
        carried = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(role_oid))
    except x509.ExtensionNotFound:
        raise Unauthenticated(f"the certificate carries no role (extension {role_oid})") from None
    if carried.critical:
        raise Unauthenticated("the certificate's role extension is marked critical, which it must not be")
    if not isinstance(carried.value, x509.UnrecognizedExtension):
        raise Unauthenticated(f"the role's OID {role_oid} belongs to another extension")
    return decode_role(carried.value.value)


def _host(certificate: x509.Certificate) -> Host:
    found = hosts(certificate)
    if not found:
        raise Unauthenticated("the certificate names no host in its SAN")
    return Host(found)

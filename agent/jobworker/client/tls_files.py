"""What the client's own files can have wrong with them.

Refused is only what no agent accepts, whatever its settings. So a CA that is not in the bundle here may well
be in the server's, and the extension that holds the role may have any OID.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from jobworker import identity
from jobworker.client import pem
from jobworker.client.endpoint import Endpoint
from jobworker.errors import TlsProblem, Unauthenticated
from jobworker.unreadable import UNREADABLE

_MIN_RSA_BITS = 2048
_ISSUE_ANEW = "have a new one issued"

E = TypeVar("E", bound=x509.ExtensionType)
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Bearer:
    """What a client's certificate says of it.

    Attributes:
        uri: its identity.
        certificate: itself.
    """

    uri: str
    role: identity.Role
    certificate: x509.Certificate


def check(endpoint: Endpoint) -> None:
    """Check CA bundle, certificate and key.

    Raises:
        TlsProblem: the first fault.
    """
    check_ca(endpoint)
    check_certificate(endpoint)
    check_key(endpoint)


def check_ca(endpoint: Endpoint) -> list[x509.Certificate]:
    """The CA bundle. Raises TlsProblem if the server can't be checked with it."""
    bundle, now = ca_bundle(endpoint), datetime.now(UTC)
    # One good CA is enough: bundles overlap when a CA is replaced.
    if not any(ca.not_valid_before_utc <= now < ca.not_valid_after_utc for ca in bundle):
        check_dates(bundle[0], f"the CA certificate {endpoint.ca}", now, "get the CA's new one")
    return bundle


def check_certificate(endpoint: Endpoint) -> Bearer:
    """What the client's certificate says. Raises TlsProblem if no agent takes it."""
    leaf, subject = client_chain(endpoint)[0], f"the client certificate {endpoint.cert}"
    try:
        check_dates(leaf, subject, datetime.now(UTC), _ISSUE_ANEW)
        _check_strength(leaf, subject)
        _check_usage(leaf, subject)
        return Bearer(_identity(leaf, subject), _role(leaf, subject), leaf)
    except UNREADABLE:
        raise TlsProblem(f"{subject} holds something that cannot be read", _ISSUE_ANEW) from None


def check_key(endpoint: Endpoint) -> None:
    """Check that the private key is that of the certificate.

    Raises:
        TlsProblem: it is not, or cannot be used.
    """
    key, leaf = _private_key(endpoint), client_chain(endpoint)[0]
    try:
        fits = key.public_key() == leaf.public_key()
    except UNREADABLE:
        problem = f"the client certificate {endpoint.cert} has a key that cannot be read"
        raise TlsProblem(problem, _ISSUE_ANEW) from None
    if not fits:
        problem = f"the private key {endpoint.key} does not belong to the certificate {endpoint.cert}"
        fix = "name the key that was made for it; in a chain the client's own certificate comes first"
        raise TlsProblem(problem, fix)


def ca_bundle(endpoint: Endpoint) -> list[x509.Certificate]:
    """The CAs that the client trusts. Raises TlsProblem if the file has none."""
    return _certificates(pem.read_ca(endpoint), endpoint.ca)


def client_chain(endpoint: Endpoint) -> list[x509.Certificate]:
    """The client's certificate and those behind it. Raises TlsProblem if the file has none."""
    return _certificates(pem.read_cert(endpoint), endpoint.cert)


def issued_within(endpoint: Endpoint) -> bool:
    """Whether a CA of the client's own bundle issued the client's certificate."""
    bundle = ca_bundle(endpoint)
    return any(_issued(certificate, ca) for certificate in client_chain(endpoint) for ca in bundle)


def check_dates(certificate: x509.Certificate, subject: str, now: datetime, fix: str) -> None:
    """Check that a certificate is valid by now, and still is.

    Args:
        certificate: any.
        subject: what it is called at the beginning of a sentence.
        now: in UTC.
        fix: what to do when it has expired.

    Raises:
        TlsProblem: it is not valid now.
    """
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= end:
        raise TlsProblem(f"{subject} expired on {end:%Y-%m-%d at %H:%M} UTC", fix)
    if now < begin:
        problem = f"{subject} is not yet valid: it begins on {begin:%Y-%m-%d at %H:%M} UTC"
        raise TlsProblem(problem, "compare the clocks of this host and of the one that issued it")


def _certificates(content: bytes, path: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        held = "a private key" if b"PRIVATE KEY-----" in content else "no certificate in PEM form"
        raise TlsProblem(f"{path} holds {held}", "name a file with a certificate") from None


def _private_key(endpoint: Endpoint) -> PrivateKey:
    content = pem.read_key(endpoint)
    try:
        # Proving an RSA key's primes takes half a second, and the key is our own.
        key = load_pem_private_key(content, password=None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        problem = f"the private key {endpoint.key} is encrypted"
        raise TlsProblem(problem, f"decrypt it: openssl pkey -in {endpoint.key} -out PLAIN.key") from None
    except (ValueError, UnsupportedAlgorithm):
        held = "a certificate" if b"-----BEGIN CERTIFICATE" in content else "no private key in PEM form"
        raise TlsProblem(f"{endpoint.key} holds {held}", "name the certificate's key with --key") from None
    if not isinstance(key, PrivateKey):
        raise TlsProblem(f"the private key {endpoint.key} is neither RSA nor ECDSA", _ISSUE_ANEW)
    return key


def _check_strength(leaf: x509.Certificate, subject: str) -> None:
    public_key = leaf.public_key()
    if isinstance(public_key, rsa.RSAPublicKey) and public_key.key_size < _MIN_RSA_BITS:
        raise TlsProblem(f"{subject} has an RSA key of only {public_key.key_size} bits", _ISSUE_ANEW)


def _check_usage(leaf: x509.Certificate, subject: str) -> None:
    usage = _extension(leaf, x509.ExtendedKeyUsage)
    if not usage or ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        problem = f"{subject} is not one for clients: its extended key usage lacks clientAuth"
        raise TlsProblem(problem, "name a client's certificate with --cert")


def _identity(leaf: x509.Certificate, subject: str) -> str:
    names = _extension(leaf, x509.SubjectAlternativeName)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    if len(uris) != 1:
        raise TlsProblem(f"{subject} names {len(uris)} URIs where one identity must stand", _ISSUE_ANEW)
    try:
        return identity.check_user_uri(uris[0])
    except Unauthenticated as error:
        raise TlsProblem(f"{subject} names no user: {error.reason}", _ISSUE_ANEW) from None


def _role(leaf: x509.Certificate, subject: str) -> identity.Role:
    for extension in leaf.extensions:
        if (role := _role_of(extension.value)) is not None:
            if extension.critical:
                problem = f"{subject} has its role in a critical extension, which TLS refuses"
                raise TlsProblem(problem, _ISSUE_ANEW)
            return role
    raise TlsProblem(f"{subject} carries no role, READER or WRITER", _ISSUE_ANEW)


def _role_of(value: x509.ExtensionType) -> identity.Role | None:
    try:
        return identity.decode_role(value.value) if isinstance(value, x509.UnrecognizedExtension) else None
    except Unauthenticated:
        return None


def _extension(leaf: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return leaf.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _issued(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (*UNREADABLE, TypeError, InvalidSignature):
        return False
    return True

"""Who a peer is, from its certificate.

TLS has checked the chain, and that the peer holds the key. It accepts more than this agent does (weak keys, no
purpose, no role), and it does not look again: a session that was resumed from a ticket may be older than its
certificate's end. So everything is checked here, on every call.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509

from jobworker import identity
from jobworker.errors import Unauthenticated
from jobworker.gateway.certificate_rules import CertificateRules
from jobworker.identity import Principal, Role, check_user_uri, decode_role
from jobworker.settings.schema import TlsSettings
from jobworker.unreadable import UNREADABLE

if TYPE_CHECKING:
    from jobworker.gateway.revocation import Revocations

E = TypeVar("E", bound=x509.ExtensionType)

_TLS_VERSION = b"TLSv1.3"
_CACHED = 1024


@dataclass(frozen=True, slots=True)
class Peer:
    """An authenticated peer.

    Attributes:
        not_before, not_after: its certificate's dates, in seconds of Unix time.
        certificate: itself.
    """

    principal: Principal
    not_before: float
    not_after: float
    certificate: x509.Certificate

    def check_dates(self, now: float) -> None:
        """Compare the certificate's dates with a time in seconds of Unix time.

        Raises:
            Unauthenticated: the certificate is not valid then.
        """
        identity.check_dates(self.not_before, self.not_after, now)


class PeerReader:
    """Reads peers' certificates; those that are good are kept, up to a bound.

    Args:
        tls: under which OID the role is, and what certificates have to be.
        revocations: what is known of them at the moment.
    """

    def __init__(self, tls: TlsSettings, revocations: Callable[[], Revocations]) -> None:
        self._revocations = revocations
        rules = CertificateRules(tls.certificates)
        read = functools.partial(read_peer, role_oid=tls.role_oid, rules=rules)
        self._read = functools.lru_cache(_CACHED)(read)

    def identify(self, auth_context: Mapping[str, Iterable[bytes]]) -> Peer:
        """The peer of a connection, by grpc's authentication context.

        Raises:
            Unauthenticated: it did not prove to be anyone that this agent knows.
        """
        if tuple(auth_context.get("ssl_tls_version", ())) != (_TLS_VERSION,):
            raise Unauthenticated("the connection is not TLS 1.3")
        pem = tuple(auth_context.get("x509_pem_cert", ()))
        if len(pem) != 1:
            raise Unauthenticated("no client certificate")
        peer = self._read(pem[0])
        self.check(peer)
        return peer

    def presented(self, auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, str]:
        """Of a peer that is not let in: the URI and the serial number in its certificate, so far as they are.

        TLS has checked that a known CA signed it; nothing else of it is to be relied upon.
        """
        try:
            certificate = x509.load_pem_x509_certificate(next(iter(auth_context.get("x509_pem_cert", ())), b""))
        except UNREADABLE:
            return "", ""
        serial = f"{certificate.serial_number:x}"
        try:
            names = _value(certificate, x509.SubjectAlternativeName)
        except UNREADABLE:
            return "", serial
        return ", ".join(names.get_values_for_type(x509.UniformResourceIdentifier) if names else ()), serial

    def check(self, peer: Peer) -> None:
        """Check what may have changed since the certificate was read.

        Raises:
            Unauthenticated: it has ended, or is revoked.
        """
        now = time.time()
        peer.check_dates(now)
        self._revocations().check(peer.certificate, now)


def read_peer(pem: bytes, role_oid: str, rules: CertificateRules) -> Peer:
    """What a certificate says of its bearer, whatever the time.

    Raises:
        Unauthenticated: it is not a client certificate by this agent's rules.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        rules.check_client(certificate)
        return Peer(
            principal=_principal(certificate, x509.ObjectIdentifier(role_oid)),
            not_before=certificate.not_valid_before_utc.timestamp(),
            not_after=certificate.not_valid_after_utc.timestamp(),
            certificate=certificate,
        )
    except UNREADABLE:
        raise Unauthenticated("the certificate cannot be read") from None


def _principal(certificate: x509.Certificate, role_oid: x509.ObjectIdentifier) -> Principal:
    names = _value(certificate, x509.SubjectAlternativeName)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    if len(uris) != 1:
        raise Unauthenticated(f"the certificate holds {len(uris)} URIs in place of one")
    role = _role(certificate, role_oid)
    return Principal(check_user_uri(uris[0]), role, f"{certificate.serial_number:x}")


def _value(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _role(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> Role:
    found = [extension for extension in certificate.extensions if extension.oid == oid]
    if not found:
        raise Unauthenticated(f"the certificate carries no role (extension {oid.dotted_string})")
    (extension,) = found  # cryptography refuses a certificate that has an extension twice
    if extension.critical:
        raise Unauthenticated("the certificate's role extension is marked critical, which it must not be")
    if not isinstance(extension.value, x509.UnrecognizedExtension):
        raise Unauthenticated(f"the role's OID {oid.dotted_string} belongs to another extension")
    return decode_role(extension.value.value)

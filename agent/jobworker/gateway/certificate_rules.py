"""What certificates have to be by this agent's settings, of clients and of itself.

TLS accepts more than anyone wants to, and its checks are not to be chosen; these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from jobworker.errors import Unauthenticated
from jobworker.settings.schema import CertificateSettings

_DAY = timedelta(days=1)


class CertificateRules:
    """The rules of the settings; by default RSA keys of 4096 bits or more, signed with SHA-256 or better."""

    def __init__(self, settings: CertificateSettings) -> None:
        self._settings = settings
        self._least = {"rsa": settings.min_rsa_bits, "ecdsa": settings.min_ecdsa_bits}
        self._client_usages = (ExtendedKeyUsageOID.CLIENT_AUTH, *_oids(settings.client_usages))
        self._agent_usages = _oids(settings.agent_usages)

    def check_client(self, certificate: x509.Certificate) -> None:
        """Check a client's certificate, whatever the time.

        Raises:
            Unauthenticated: it is not as the settings want it.
        """
        self._check_strength(certificate)
        self._check_life(certificate, self._settings.max_client_life_ms)
        missing = _missing(certificate, self._client_usages)
        if ExtendedKeyUsageOID.CLIENT_AUTH in missing:
            raise Unauthenticated("the certificate is not meant for clients: it lacks the usage clientAuth")
        _refuse_without(missing)

    def check_agent(self, certificate: x509.Certificate) -> None:
        """Check the agent's own certificate, whatever the time.

        Raises:
            Unauthenticated: it is not as the settings want it.
        """
        self._check_strength(certificate)
        self._check_life(certificate, self._settings.max_agent_life_ms)
        _check_names(certificate)
        _refuse_without(_missing(certificate, self._agent_usages))

    def _check_strength(self, certificate: x509.Certificate) -> None:
        kind, bits = _kind_and_bits(certificate)
        if kind not in self._settings.key_types or bits < self._least[kind]:
            wanted = " or ".join(f"{one.upper()} with {self._least[one]} bits" for one in self._settings.key_types)
            raise Unauthenticated(f"the certificate's key is not {wanted} or more")
        made_with = certificate.signature_hash_algorithm
        if made_with is None or made_with.name not in self._settings.hashes:
            wanted = " or ".join(self._settings.hashes)
            raise Unauthenticated(f"the certificate's signature is not made with {wanted}")

    def _check_life(self, certificate: x509.Certificate, most_ms: int) -> None:
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        days, most = life / _DAY, timedelta(milliseconds=most_ms) / _DAY
        if most_ms and days > most:
            raise Unauthenticated(f"the certificate is made for {days:.4g} days, and {most:.4g} are the most here")


def _check_names(certificate: x509.Certificate) -> None:
    """Clients compare where they connect to with these alone (RFC 9110, 4.3.4), and would refuse it one by one."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    if not names.get_values_for_type(x509.DNSName) and not names.get_values_for_type(x509.IPAddress):
        raise Unauthenticated("the certificate names no host: it lacks a DNS name or an address (subjectAltName)")


def _oids(usages: tuple[str, ...]) -> tuple[x509.ObjectIdentifier, ...]:
    return tuple(map(x509.ObjectIdentifier, usages))


def _kind_and_bits(certificate: x509.Certificate) -> tuple[str, int]:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return "rsa", key.key_size
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "ecdsa", key.key_size
    return "", 0


def _missing(
    certificate: x509.Certificate, wanted: Sequence[x509.ObjectIdentifier]
) -> list[x509.ObjectIdentifier]:
    try:
        held = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return list(wanted)
    return [usage for usage in wanted if usage not in held]


def _refuse_without(missing: Sequence[x509.ObjectIdentifier]) -> None:
    if missing:
        raise Unauthenticated(f"the certificate lacks the extended key usage {missing[0].dotted_string}")

"""Keys and signatures: what makes a certificate of a profile, and what tells whether one still holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from jobworker_pki.profiles import Profile

KEY_BITS = 4096

# A peer whose clock is a little slow must not take a fresh certificate for one of the future.
_CLOCK_SKEW = timedelta(minutes=5)

_UNREADABLE = (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """PKCS #8, not encrypted: the file's mode protects it."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def new_key() -> rsa.RSAPrivateKey:
    """A fresh RSA-4096 key; takes about a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)


def self_signed(profile: Profile, now: datetime) -> Pair:
    """A root CA with a new key."""
    key = new_key()
    issuer = (profile.subject(), key)
    return Pair(_signed(issuer, profile, key.public_key(), (now, now + profile.life)), key)


def issue(ca: Pair, profile: Profile, now: datetime) -> Pair:
    """A certificate of this CA with a new key."""
    key = new_key()
    return Pair(sign(ca, profile, key.public_key(), now), key)


def sign(ca: Pair, profile: Profile, public_key: rsa.RSAPublicKey, now: datetime) -> x509.Certificate:
    """A certificate of this CA for a key that may be elsewhere; it does not outlive the CA."""
    end = min(now + profile.life, ca.certificate.not_valid_after_utc)
    return _signed((ca.certificate.subject, ca.key), profile, public_key, (now, end))


def _signed(
    issuer: tuple[x509.Name, rsa.RSAPrivateKey],
    profile: Profile,
    public_key: rsa.RSAPublicKey,
    dates: tuple[datetime, datetime],
) -> x509.Certificate:
    name, key = issuer
    begin, end = dates
    builder = (
        x509.CertificateBuilder()
        .issuer_name(name)
        .subject_name(profile.subject())
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for extension in profile.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, hashes.SHA256())


def fault(pair: Pair, profile: Profile, issuer: x509.Certificate, now: datetime) -> str | None:
    """What keeps an existing pair from being what the profile asks for; None if nothing does.

    It may carry more names than asked for, and another subject.
    """
    certificate = pair.certificate
    try:
        if pair.key.public_key() != certificate.public_key():
            return "certificate and key do not belong together"
        if pair.key.key_size < KEY_BITS:
            return f"the key has {pair.key.key_size} bits, fewer than {KEY_BITS}"
        return _untimely(certificate, now) or _foreign(certificate, issuer) or _lacking(certificate, profile)
    except _UNREADABLE:
        return "the certificate holds something that cannot be read"


def _untimely(certificate: x509.Certificate, now: datetime) -> str | None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= end:
        return f"the certificate expired on {end:%Y-%m-%d at %H:%M} UTC"
    if now < begin:
        return f"the certificate is not yet valid: it begins on {begin:%Y-%m-%d at %H:%M} UTC"
    return None


def _foreign(certificate: x509.Certificate, issuer: x509.Certificate) -> str | None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*_UNREADABLE, TypeError, InvalidSignature):
        return "the certificate was not issued by this CA"
    return None


def _lacking(certificate: x509.Certificate, profile: Profile) -> str | None:
    for extension in profile.extensions:
        wanted, oid = extension.value, extension.value.oid.dotted_string
        try:
            found = certificate.extensions.get_extension_for_oid(extension.value.oid)
        except x509.ExtensionNotFound:
            return f"the certificate has no extension {oid}"
        if isinstance(wanted, x509.SubjectAlternativeName) and isinstance(found.value, type(wanted)):
            absent = [str(name.value) for name in wanted if name not in list(found.value)]
            if absent:
                return f"the certificate does not name {', '.join(absent)}"
        elif (found.value, found.critical) != (wanted, extension.critical):
            return f"the certificate's extension {oid} is not as asked for"
    return None

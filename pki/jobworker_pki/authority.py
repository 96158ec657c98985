"""Signatures: what makes a certificate of a profile, and what tells whether one still holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from jobworker.errors import Unauthenticated
from jobworker.identity import decode_role
from jobworker.unreadable import UNREADABLE
from jobworker_pki import keys
from jobworker_pki.keys import KEY_BITS
from jobworker_pki.profiles import Profile

# A peer whose clock is a little slow must not take a fresh certificate for one of the future.
CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey


def pem(*certificates: x509.Certificate) -> bytes:
    """A chain as it stands in a file: the leaf first."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def self_signed(profile: Profile, now: datetime) -> Pair:
    """A root CA with a new key."""
    key = keys.new()
    issuer = (profile.subject(), key)
    return Pair(_signed(issuer, profile, key.public_key(), (now, now + profile.life)), key)


def issue(ca: Pair, profile: Profile, now: datetime, bits: int = KEY_BITS) -> Pair:
    """A certificate of this CA with a new key."""
    key = keys.new(bits)
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
        .not_valid_before(begin - CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for extension in profile.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, hashes.SHA256())


def fault(pair: Pair, profile: Profile, issuer: x509.Certificate, now: datetime) -> str | None:
    """What keeps an existing pair from being what the profile asks for; None if nothing does."""
    if pair.key.public_key() != _key_of(pair.certificate):
        return "certificate and key do not belong together"
    return certificate_fault(pair.certificate, profile, issuer, now)


def certificate_fault(
    certificate: x509.Certificate, profile: Profile, issuer: x509.Certificate, now: datetime
) -> str | None:
    """What keeps an existing certificate from being what the profile asks for; None if nothing does.

    It may carry more names than asked for, and another subject.
    """
    try:
        return (
            keys.weakness(certificate.public_key())
            or untimely(certificate, now)
            or foreign(certificate, issuer)
            or _lacking(certificate, profile)
        )
    except UNREADABLE:
        return "the certificate holds something that cannot be read"


def _key_of(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except UNREADABLE:
        return None


def untimely(certificate: x509.Certificate, now: datetime) -> str | None:
    """Why a certificate is not valid now; None if it is."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= end:
        return f"the certificate expired on {end:%Y-%m-%d at %H:%M} UTC"
    if now < begin:
        return f"the certificate is not yet valid: it begins on {begin:%Y-%m-%d at %H:%M} UTC"
    return None


def foreign(certificate: x509.Certificate, issuer: x509.Certificate) -> str | None:
    """Why a certificate is not this issuer's; None if it is."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*UNREADABLE, TypeError, InvalidSignature):
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
            return _other_role(found.value, wanted) or f"the certificate's extension {oid} is not as asked for"
    return None


def _other_role(found: x509.ExtensionType, wanted: x509.ExtensionType) -> str | None:
    """What two extensions differ in, if each holds a role; None otherwise."""
    if not (isinstance(found, x509.UnrecognizedExtension) and isinstance(wanted, x509.UnrecognizedExtension)):
        return None
    try:
        roles = [decode_role(each.value).value for each in (found, wanted)]
    except Unauthenticated:
        return None
    return f"the certificate is a {roles[0]}'s, not a {roles[1]}'s" if roles[0] != roles[1] else None

"""Revoking, and the signed lists that tell agents of it (RFC 5280, section 5)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from jobworker.errors import InvalidField, PkiProblem
from jobworker.unreadable import UNREADABLE
from jobworker_pki import index
from jobworker_pki.home import ROOT, Home
from jobworker_pki.index import Record

UNSPECIFIED = "unspecified"
# Not those that can be taken back: whoever has been let in again was never shut out for sure.
REASONS = (
    UNSPECIFIED,
    "keyCompromise",
    "cACompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "privilegeWithdrawn",
)

_SERIAL = re.compile(r"(?:0x)?([0-9a-fA-F]{1,40})")
_MAX_BYTES = 256 * 1024
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def revoke(home: Home, target: str, reason: str) -> tuple[tuple[Record, ...], bool]:
    """Enter a revocation into the index; the next list carries it.

    A renewed certificate has the key of the one before, which may still be valid: all of a key go together.

    Args:
        home: the PKI that issued it.
        target: a certificate's file, or its serial number in hexadecimal, with or without colons.
        reason: one of `REASONS`.

    Returns:
        The revocations' records, the target's first, and whether anything is new.

    Raises:
        PkiProblem: this PKI did not issue it, or it is the root.
    """
    named = _of_file(home, target) if os.path.exists(target) else _of_serial(home, target)
    done = index.records(home.store)
    earlier, now = index.revocations(done), datetime.now(UTC).isoformat(timespec="seconds")
    others = {one.serial: one for one in index.issuings(done) if one.key == named.key and one.not_after > now}
    wanted = {named.serial: named} | others
    fresh = [one for serial, one in wanted.items() if serial not in earlier]
    for one in fresh:
        index.append(home.store, _revocation(one, reason, now))
    revoked = index.revocations(index.records(home.store))
    return tuple(revoked[serial] for serial in wanted), bool(fresh)


def _revocation(one: Record, reason: str, now: str) -> Record:
    return Record(
        time=now,
        action="revoke",
        ca=one.ca,
        serial=one.serial,
        subject=one.subject,
        not_after=one.not_after,
        key=one.key,
        reason=reason,
    )


def crl(home: Home, ca: str, life: timedelta) -> tuple[str, x509.CertificateRevocationList]:
    """Sign a list of what is revoked, and put it in place of the last one; return its path too.

    Raises:
        PkiProblem: the CA's key is not here or cannot be opened.
    """
    now, done = datetime.now(UTC).replace(microsecond=0), index.records(home.store)
    signer = home.signer(ca, now)
    number = max((record.number for record in done if record.ca == ca), default=0) + 1
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(now)
        .next_update(now + life)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False)
    )
    for record in _to_be_listed(done, ca):
        builder = builder.add_revoked_certificate(_entry(record))
    made = builder.sign(signer.key, hashes.SHA256())
    index.append(home.store, Record(time=now.isoformat(), action="crl", ca=ca, number=number))
    home.store.put(f"{ca}.crl", made.public_bytes(serialization.Encoding.PEM))
    return home.store.path_of(f"{ca}.crl"), made


def due(home: Home, ca: str) -> datetime:
    """When the next list is to be signed: two thirds into the life of the one that there is.

    In the past where that one will not do: there is none, it cannot be read, or it lacks a revocation.
    """
    try:
        last = x509.load_pem_x509_crl(home.store.content(f"{ca}.crl"))
        number = last.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (OSError, PkiProblem, x509.ExtensionNotFound, *UNREADABLE):
        return _LONG_AGO
    done = [
        record for record in index.records(home.store) if record.ca == ca and record.action in {"crl", "revoke"}
    ]
    # A revocation has no number.
    if not done or done[-1].number != number or last.next_update_utc is None:
        return _LONG_AGO
    return last.last_update_utc + (last.next_update_utc - last.last_update_utc) * 2 / 3


def _to_be_listed(done: tuple[Record, ...], ca: str) -> Iterator[Record]:
    """The revocations, without those that a list has named after the certificate's end (RFC 5280, 3.3)."""
    last = max((at for at, record in enumerate(done) if (record.action, record.ca) == ("crl", ca)), default=0)
    for at, record in enumerate(done):
        if (record.action, record.ca) == ("revoke", ca) and not (at < last and record.not_after < done[last].time):
            yield record


def _entry(record: Record) -> x509.RevokedCertificate:
    builder = (
        x509.RevokedCertificateBuilder()
        .serial_number(int(record.serial, 16))
        .revocation_date(datetime.fromisoformat(record.time))
    )
    if record.reason != UNSPECIFIED:  # RFC 5280, 5.3.1: then it should be absent
        builder = builder.add_extension(x509.CRLReason(x509.ReasonFlags(record.reason)), critical=False)
    return builder.build()


def _of_file(home: Home, path: str) -> Record:
    """A certificate that this PKI signed, even if the index has lost it."""
    try:
        with open(path, "rb") as file:
            certificate = x509.load_pem_x509_certificate(file.read(_MAX_BYTES))
    except OSError as error:
        raise PkiProblem(path, f"cannot be read: {error.strerror}") from None
    except UNREADABLE:
        raise PkiProblem(path, "holds no certificate in PEM form") from None
    ca = home.signer_of(path, certificate, "revoke")
    if certificate.subject == certificate.issuer:
        raise _of_root(path)
    return Record.of(certificate, ca, home.settings.role_oid)


def _of_serial(home: Home, text: str) -> Record:
    matched = _SERIAL.fullmatch(text.replace(":", ""))
    if not matched:
        raise InvalidField("certificate", f"{text!r:.80} is neither a file nor a serial number", "users/alice.pem")
    serial = f"{int(matched[1], 16):x}"
    found = index.issued(index.records(home.store), serial)
    if found is None:
        fix = "look for it with worker-pki show FILE, or in the index"
        raise PkiProblem(
            home.store.path_of(index.FILE), f"no certificate with serial {serial} was issued here", fix
        )
    if found.ca == ROOT and serial == f"{home.certificate(ROOT).serial_number:x}":
        raise _of_root(home.store.path_of(f"{ROOT}.pem"))
    return found


def _of_root(path: str) -> PkiProblem:
    return PkiProblem(path, "is the root, which no list can revoke", "take its ca.pem from every host instead")

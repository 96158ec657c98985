"""The record of what a PKI has done: one JSON object a line, only ever appended to.

A certificate is recorded before it is written to its file, so none is about that the index does not know.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from jobworker.errors import PkiProblem
from jobworker_pki import reading
from jobworker_pki.files import KEY_MODE, Store

FILE = "index.jsonl"
_ISSUING = ("init", "issue", "sign", "renew")


@dataclass(frozen=True, slots=True)
class Record:
    """One act. Fields that do not apply are empty, and absent in the file.

    Attributes:
        time: when, ISO 8601 in UTC.
        action: one of `init`, `issue`, `sign`, `renew`, `revoke`, `crl`.
        ca: whose signature it is about: `root` or `intermediate`.
        serial: of the certificate, lower-case hexadecimal.
        names: its SAN, as `DNS:…`, `IP:…`, `URI:…`.
        key: SHA-256 of the public key (SubjectPublicKeyInfo), hexadecimal.
        file: where it was written.
        replaces: the serial of the certificate that this one renews.
        reason: of a revocation, as RFC 5280 calls it.
        number: of a revocation list.
    """

    time: str
    action: str
    ca: str
    serial: str = ""
    subject: str = ""
    names: tuple[str, ...] = ()
    role: str = ""
    not_before: str = ""
    not_after: str = ""
    key: str = ""
    file: str = ""
    replaces: str = ""
    reason: str = ""
    number: int = 0

    @classmethod
    def of(cls, certificate: x509.Certificate, ca: str, role_oid: str) -> Record:
        """What there is to say of a certificate; the action remains to be filled in."""
        return cls(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            action="",
            ca=ca,
            serial=f"{certificate.serial_number:x}",
            subject=certificate.subject.rfc4514_string(),
            names=reading.names(certificate),
            role=reading.role_name(certificate, role_oid),
            not_before=certificate.not_valid_before_utc.isoformat(),
            not_after=certificate.not_valid_after_utc.isoformat(),
            key=fingerprint(certificate.public_key()),
        )

    def encode(self) -> bytes:
        fields = {name: value for name, value in dataclasses.asdict(self).items() if value}
        return json.dumps(fields).encode() + b"\n"


def fingerprint(key: PublicKeyTypes) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo, in hexadecimal."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def append(store: Store, record: Record) -> None:
    """Add a record, lastingly. The store is locked, so there is one writer.

    Raises:
        OSError: the disk does not take it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(FILE, flags, KEY_MODE, dir_fd=store.fd), "r+b", buffering=0) as stream:
        os.fchmod(stream.fileno(), KEY_MODE)
        # What stands behind the last newline is of an act that never completed.
        stream.truncate(stream.read().rfind(b"\n") + 1)
        data = record.encode()
        while data:
            # A disk with little room takes a part of it before it refuses the rest.
            data = data[stream.write(data) :]
        os.fsync(stream.fileno())
    os.fsync(store.fd)


def records(store: Store) -> tuple[Record, ...]:
    """All records, the oldest first.

    Raises:
        PkiProblem: a line is not a record; nothing is guessed, since a revocation may stand there.
    """
    if not store.holds(FILE):
        return ()
    with open(os.open(FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=store.fd), "rb") as stream:
        whole = stream.read().rpartition(b"\n")[0]
    return tuple(_decode(store, number, line) for number, line in enumerate(whole.splitlines(), 1))


def revocations(done: tuple[Record, ...]) -> dict[str, Record]:
    """Who has been revoked, by serial."""
    return {record.serial: record for record in done if record.action == "revoke"}


def is_revoked(done: tuple[Record, ...], key: PublicKeyTypes) -> bool:
    """Whether a certificate of this key has been revoked: who had it may have it still."""
    found = fingerprint(key)
    return any(record.key == found for record in revocations(done).values())


def is_requested(done: tuple[Record, ...], key: PublicKeyTypes) -> bool:
    """Whether a key came with a request, so that it was made elsewhere."""
    found = fingerprint(key)
    return any(record.action == "sign" and record.key == found for record in done)


def issued(done: tuple[Record, ...], serial: str) -> Record | None:
    """The record of a certificate's issuing."""
    return next((record for record in issuings(done) if record.serial == serial), None)


def issuings(done: tuple[Record, ...]) -> Iterator[Record]:
    """The records of all certificates."""
    return (record for record in done if record.action in _ISSUING)


def _decode(store: Store, number: int, line: bytes) -> Record:
    try:
        fields: dict[str, Any] = json.loads(line)
        record = Record(names=tuple(fields.pop("names", ())), **fields)
        int(record.serial or "0", 16)
    except (ValueError, TypeError, AttributeError):
        problem = f"line {number} is not a record"
        raise PkiProblem(store.path_of(FILE), problem, "restore the file from a backup") from None
    return record

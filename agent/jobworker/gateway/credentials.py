"""The agent's own certificate, its key, and the CAs that clients are checked against."""

from __future__ import annotations

import ipaddress
import os
import stat
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from jobworker.errors import PkiProblem, Unauthenticated
from jobworker.gateway.certificates import check_strength
from jobworker.settings.schema import TlsSettings

_MAX_PEM_BYTES = 1024 * 1024
_DEV = "DEV"
# What comes of a signature that is not the other certificate's, besides ValueError and TypeError.
BAD_SIGNATURE = (InvalidSignature, UnsupportedAlgorithm)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Checked PEM data for the server.

    Attributes:
        expires_ns: when the certificate ends, in nanoseconds of Unix time.
        ca_expires_ns: when the first of the CAs does.
        dev: a CA among them is for development only.
    """

    ca: bytes
    cert: bytes
    key: bytes
    expires_ns: int
    ca_expires_ns: int
    dev: bool


def paths(tls: TlsSettings) -> tuple[str, ...]:
    """The files that `load` depends on."""
    return (tls.ca, tls.cert, tls.key)


def load(tls: TlsSettings) -> Credentials:
    """Read and check the files.

    Raises:
        PkiProblem: they are not to be served with.
    """
    ca, cert = read(tls.ca), read(tls.cert)
    key = read(tls.key, private=True)
    authorities = certificates(tls.ca, ca)
    own = certificates(tls.cert, cert)[0]
    try:
        check_strength(own)
    except Unauthenticated as error:
        raise PkiProblem(tls.cert, error.reason, "issue a new one, with worker-pki for example") from None
    if _public_of_key(tls.key, key) != _plain(own.public_key()):
        raise PkiProblem(tls.key, f"is not the key of the certificate {tls.cert}", "install both from one issue")
    dev = any(_is_dev(authority) for authority in authorities)
    return Credentials(ca, cert, key, _end_ns(own), min(map(_end_ns, authorities)), dev)


def read(path: str, *, private: bool = False) -> bytes:
    """A file's contents, up to what any of these may hold.

    Raises:
        PkiProblem: it can't be read, or is private and others can use it.
    """
    try:
        with open(path, "rb") as file:
            if private:
                _check_private(path, os.fstat(file.fileno()))
            return file.read(_MAX_PEM_BYTES)
    except OSError as error:
        raise PkiProblem(path, f"cannot be read: {error.strerror}") from None


def _check_private(path: str, status: os.stat_result) -> None:
    # The gateway has no privileges: a key that root owns reaches it by its group.
    allowed = 0o640 if status.st_uid == 0 and status.st_gid == os.getegid() else 0o600
    excess = stat.S_IMODE(status.st_mode) & 0o077 & ~allowed
    if excess:
        raise PkiProblem(
            path, f"can be used by others (mode {stat.S_IMODE(status.st_mode):04o})", f"chmod 0600 {path}"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise PkiProblem(path, f"belongs to another user ({status.st_uid})", "give it to this process's user")


def certificates(path: str, pem: bytes) -> list[x509.Certificate]:
    """What a file holds.

    Raises:
        PkiProblem: no certificates.
    """
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise PkiProblem(path, "holds no certificate in PEM form, or one that cannot be read") from None


def _public_of_key(path: str, pem: bytes) -> bytes:
    try:
        # Its arithmetic is not checked, which takes long: that it fits the certificate is what counts.
        key = serialization.load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        raise PkiProblem(path, "is encrypted, and nobody is there to type the password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise PkiProblem(path, "holds no private key in PEM form") from None
    return _plain(key.public_key())


def _plain(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _end_ns(certificate: x509.Certificate) -> int:
    return int(certificate.not_valid_after_utc.timestamp()) * 1_000_000_000


def _is_dev(certificate: x509.Certificate) -> bool:
    return any(_DEV in str(attribute.value) for attribute in certificate.subject)


def check_listen(listen: str, credentials: Credentials, tls: TlsSettings) -> None:
    """Keep development certificates, whose keys lie around, off the network.

    Raises:
        PkiProblem: `listen` (HOST:PORT) is not a loopback address and the CA is for development.
    """
    host = listen.rpartition(":")[0].strip("[]")
    if credentials.dev and not _is_loopback(host):
        problem = f"is a development CA, and {listen} can be reached from other hosts"
        raise PkiProblem(tls.ca, problem, "listen on 127.0.0.1, or use a CA of your own")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

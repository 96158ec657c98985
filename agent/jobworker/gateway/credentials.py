"""The agent's own certificate, its key, and the CAs that clients are checked against."""

from __future__ import annotations

import ipaddress
import os
import stat
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from jobworker.errors import PkiProblem, Unauthenticated
from jobworker.gateway.certificate_rules import CertificateRules
from jobworker.settings.schema import TlsSettings
from jobworker.unreadable import UNREADABLE

_MAX_PEM_BYTES = 1024 * 1024
_DEV = "jobworker DEV CA "
_PADDING, _HASH = padding.PKCS1v15(), hashes.SHA256()


@dataclass(frozen=True, slots=True)
class Credentials:
    """Checked PEM data for the server.

    Attributes:
        begins_ns: when the certificate begins, in nanoseconds of Unix time.
        expires_ns: when it ends.
        ca_expires_ns: when the first of the CAs does.
        dev: a CA among them is for development only.
    """

    ca: bytes
    cert: bytes
    key: bytes
    begins_ns: int
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
        CertificateRules(tls.certificates).check_agent(own)
    except Unauthenticated as error:
        raise PkiProblem(tls.cert, error.reason, "issue a new one, with worker-pki for example") from None
    if _public_of_key(tls.key, key) != _plain(own.public_key()):
        raise PkiProblem(tls.key, f"is not the key of the certificate {tls.cert}", "install both from one issue")
    _try_key(tls.key, key, own)
    dev = any(_is_dev(authority) for authority in authorities)
    begins_ns = int(own.not_valid_before_utc.timestamp()) * 1_000_000_000
    return Credentials(ca, cert, key, begins_ns, _end_ns(own), min(map(_end_ns, authorities)), dev)


def read(path: str, limit: int = _MAX_PEM_BYTES, *, private: bool = False) -> bytes:
    """A file's contents.

    Raises:
        PkiProblem: it can't be read, is no file or too large, or is private and others can use it.
    """
    try:
        # Not waiting for whoever might write to a FIFO.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PkiProblem(path, "is not a regular file")
            if private:
                _check_private(path, status)
            data = file.read(limit + 1)
    except OSError as error:
        raise PkiProblem(path, f"cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise PkiProblem(path, f"is larger than {limit >> 20} MiB")
    return data


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
        found = x509.load_pem_x509_certificates(pem)
        for each in found:
            # Read now, or it fails where nobody expects that.
            _ = each.extensions, each.public_key()
    except UNREADABLE:
        raise PkiProblem(path, "holds no certificate in PEM form, or one that cannot be read") from None
    return found


def _public_of_key(path: str, pem: bytes) -> bytes:
    try:
        # Its arithmetic is not checked, which takes long: that it fits the certificate is what counts.
        key = serialization.load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        raise PkiProblem(path, "is encrypted, and nobody is there to type the password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise PkiProblem(path, "holds no private key in PEM form") from None
    return _plain(key.public_key())


def _try_key(path: str, pem: bytes, certificate: x509.Certificate) -> None:
    """Sign with it, since only its public half was compared."""
    key = serialization.load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)
    public = certificate.public_key()
    try:
        if isinstance(key, rsa.RSAPrivateKey) and isinstance(public, rsa.RSAPublicKey):
            public.verify(key.sign(b"", _PADDING, _HASH), b"", _PADDING, _HASH)
        elif isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(key.sign(b"", ec.ECDSA(_HASH)), b"", ec.ECDSA(_HASH))
        else:
            # The settings let no other kind through.
            raise PkiProblem(path, "is neither an RSA nor an ECDSA key")
    except (ValueError, InvalidSignature):
        raise PkiProblem(path, "is damaged: what it signs does not verify") from None


def _plain(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def may_sign_lists(certificate: x509.Certificate) -> bool:
    """False if its key usage says that it may not (RFC 5280, 4.2.1.3)."""
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True


def issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """True if one's key has signed the other, under its name."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _end_ns(certificate: x509.Certificate) -> int:
    return int(certificate.not_valid_after_utc.timestamp()) * 1_000_000_000


def _is_dev(certificate: x509.Certificate) -> bool:
    return any(str(attribute.value).startswith(_DEV) for attribute in certificate.subject)


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

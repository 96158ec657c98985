"""Signing requests: all that is believed of them is the key, and the names that an operator confirms."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from jobworker.errors import PkiProblem
from jobworker.unreadable import UNREADABLE
from jobworker_pki import keys, profiles, reading

_MAX_BYTES = 64 * 1024
_ASK = "make it anew, for example with openssl req -new -newkey rsa:4096 -addext subjectAltName=DNS:NAME"


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose sender holds the key, and whose key the policy takes.

    Attributes:
        names: all that it asks for, each with its kind in front, e.g. `DNS:agent.example.org`.
        hosts, uris: those of them that can be had.
    """

    path: str
    key: rsa.RSAPublicKey
    names: tuple[str, ...]
    hosts: tuple[str, ...]
    uris: tuple[str, ...]

    def confirmed(self, wanted: tuple[str, ...], *, accept: bool) -> tuple[str, ...]:
        """The hosts to be named: those that are both asked for and confirmed.

        Raises:
            InvalidField: a confirmed one is no name.
            PkiProblem: it does not ask for a confirmed one, or nothing is confirmed.
        """
        if not self.hosts:
            raise PkiProblem(self.path, "asks for no host name or address in a subjectAltName", _ASK)
        if accept:
            return self.hosts
        wanted = tuple(str(profiles.host_name(name).value) for name in wanted)
        absent = [name for name in wanted if name not in self.hosts]
        if absent:
            problem = f"does not ask for {', '.join(absent)}; it asks for {', '.join(self.hosts)}"
            raise PkiProblem(self.path, problem, "confirm names out of these with --san")
        if not wanted:
            problem = f"asks for {', '.join(self.hosts)}"
            raise PkiProblem(self.path, problem, "confirm each with --san NAME, or all with --accept-names")
        return wanted


def read(path: str) -> Request:
    """Read and check a request in PEM or DER form.

    Raises:
        PkiProblem: it is none, its signature does not hold, or its key is not to be had.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES)
    except OSError as error:
        raise PkiProblem(path, f"cannot be read: {error.strerror}") from None
    request = _parse(path, content)
    try:
        return _checked(path, request)
    except UNREADABLE:
        raise PkiProblem(path, "holds something that cannot be read", _ASK) from None


def _parse(path: str, content: bytes) -> x509.CertificateSigningRequest:
    try:
        if b"-----BEGIN" in content:
            return x509.load_pem_x509_csr(content)
        return x509.load_der_x509_csr(content)
    except UNREADABLE:
        raise PkiProblem(path, "holds no certificate signing request", _ASK) from None


def _checked(path: str, request: x509.CertificateSigningRequest) -> Request:
    key = request.public_key()
    weak = keys.objection(key)
    if weak or not isinstance(key, rsa.RSAPublicKey):
        raise PkiProblem(path, weak or "the key is not RSA", _ASK)
    if not isinstance(request.signature_hash_algorithm, reading.HASHES):
        raise PkiProblem(path, "is not signed with SHA-256 or better", _ASK)
    if not request.is_signature_valid:
        raise PkiProblem(path, "its signature does not hold, so its sender may not have the key", _ASK)
    return Request(path, key, reading.names(request), reading.hosts(request), tuple(reading.uris(request)))

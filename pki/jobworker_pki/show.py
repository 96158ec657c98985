"""What a person wants to know of a certificate, a bundle, a request or a revocation list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from jobworker.errors import PkiProblem, Unauthenticated
from jobworker.identity import DEFAULT_ROLE_OID
from jobworker.unreadable import UNREADABLE
from jobworker_pki import authority, keys, profiles, reading

_MAX_BYTES = 4 * 1024 * 1024
_SUBJECTS = "a certificate, a bundle of them, a signing request or a revocation list"

Lines = Iterator[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Context:
    """What an agent knows besides the file.

    Attributes:
        trusted: its CAs; empty if that is not to be looked at.
        untrusted: CAs that issuers and lists are known by, and that count in a chain only where a file has them.
        revoked: serial numbers, in lower-case hexadecimal.
    """

    now: datetime
    role_oid: str = DEFAULT_ROLE_OID
    trusted: tuple[x509.Certificate, ...] = ()
    untrusted: tuple[x509.Certificate, ...] = ()
    revoked: frozenset[str] = frozenset()

    @property
    def known(self) -> tuple[x509.Certificate, ...]:
        """All CAs, whether they are trusted or not."""
        return (*self.trusted, *self.untrusted)


def text(path: str, context: Context) -> str:
    """All that is in a file, as text that no terminal takes for commands.

    Raises:
        PkiProblem: it holds nothing that can be shown.
    """
    content = _content(path)
    try:
        blocks = list(_blocks(path, content, context))
    except UNREADABLE:
        raise PkiProblem(path, "holds something that cannot be read") from None
    return "\n\n".join("\n".join(f"{name + ':':<10} {_plain(value)}" for name, value in block) for block in blocks)


def certificates(path: str) -> tuple[x509.Certificate, ...]:
    """The certificates in a bundle.

    Raises:
        PkiProblem: it holds none.
    """
    try:
        return tuple(x509.load_pem_x509_certificates(_content(path)))
    except UNREADABLE:
        raise PkiProblem(path, "holds no certificate in PEM form") from None


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise PkiProblem(path, f"cannot be read: {error.strerror}") from None


def _blocks(path: str, content: bytes, context: Context) -> Iterator[list[tuple[str, str]]]:
    if b"PRIVATE KEY-----" in content and b"BEGIN CERTIFICATE" not in content:
        raise PkiProblem(path, "is a private key, which is not for showing", f"give {_SUBJECTS}")
    if b"BEGIN X509 CRL" in content:
        yield list(_crl(x509.load_pem_x509_crl(content), context))
    elif b"REQUEST-----" in content:
        yield list(_request(x509.load_pem_x509_csr(content)))
    elif b"BEGIN CERTIFICATE" in content:
        bundle = tuple(x509.load_pem_x509_certificates(content))
        yield from (list(_certificate(one, bundle, context)) for one in bundle)
    else:
        raise PkiProblem(path, "holds nothing to show in PEM form", f"give {_SUBJECTS}")


def _certificate(one: x509.Certificate, bundle: tuple[x509.Certificate, ...], context: Context) -> Lines:
    yield "subject", one.subject.rfc4514_string()
    yield from (("name", name) for name in reading.names(one))
    role = reading.role_name(one, context.role_oid)
    if role:
        yield "role", role
    yield "key", f"{_key(one.public_key())}, signed with {_hash(one)}"
    yield "valid", _validity(one.not_valid_before_utc, one.not_valid_after_utc, context.now)
    yield "serial", f"{one.serial_number:x}"
    yield from (("issuer", issuer) for issuer in _issuers(one, (*bundle, *context.known)))
    yield from _limits(one)
    yield "agent", _verdict(one, bundle, context)


def _issuers(one: x509.Certificate, known: tuple[x509.Certificate, ...]) -> Iterator[str]:
    """The chain upwards, as far as it is known."""
    for _ in range(len(known) + 1):
        if authority.foreign(one, one) is None:
            return
        above = _above(one, known)
        yield one.issuer.rfc4514_string() + ("" if above else " (not in this file)")
        if above is None:
            return
        one = above


def _above(one: x509.Certificate, known: tuple[x509.Certificate, ...]) -> x509.Certificate | None:
    return next((issuer for issuer in known if authority.foreign(one, issuer) is None), None)


def _all_above(one: x509.Certificate, known: tuple[x509.Certificate, ...]) -> Iterator[x509.Certificate]:
    for _ in known:
        above = _above(one, known)
        if above is None or above == one:
            return
        yield above
        one = above


def _limits(one: x509.Certificate) -> Lines:
    if not reading.is_ca(one):
        return
    constraints = reading.extension(one, x509.BasicConstraints)
    depth = constraints.path_length if constraints else None
    yield (
        "ca",
        "of leaves only" if depth == 0 else f"of {depth if depth is not None else 'any number of'} CAs below",
    )
    names = reading.extension(one, x509.NameConstraints)
    yield from (("permits", profiles.label(name)) for name in (names and names.permitted_subtrees) or ())


def _verdict(one: x509.Certificate, bundle: tuple[x509.Certificate, ...], context: Context) -> str:
    is_revoked = f"{one.serial_number:x}" in context.revoked
    if reading.is_ca(one):
        if is_revoked:
            return "refuses what this CA has issued: it is revoked"
        return "trusts what this CA has issued, if it is among the agent's CAs"
    try:
        # First: it stays revoked when it has ended.
        if is_revoked:
            raise Unauthenticated("the certificate is revoked")
        bearer = reading.bearer(one, context.role_oid)
        reading.check_dates(one, context.now)
        _check_chain(one, bundle, context)
    except Unauthenticated as error:
        return f"refuses it: {error.reason}"
    condition = "" if context.trusted else ", if it trusts the issuer and no revocation list names it"
    if isinstance(bearer, reading.User):
        return f"accepts {bearer.uri} as {bearer.role.value}{condition}"
    return f"serves with it as {', '.join(bearer.names)}{condition}"


def _check_chain(one: x509.Certificate, bundle: tuple[x509.Certificate, ...], context: Context) -> None:
    if any(f"{each.serial_number:x}" in context.revoked for each in _all_above(one, (*bundle, *context.known))):
        raise Unauthenticated("the certificate's issuer is revoked")
    for _ in bundle:
        if not context.trusted or _above(one, context.trusted):
            return
        above = _above(one, bundle)
        if above is None:
            break
        reading.check_dates(above, context.now)
        one = above
    raise Unauthenticated("the chain in this file does not lead to a CA that is trusted")


def _request(request: x509.CertificateSigningRequest) -> Lines:
    yield "request", request.subject.rfc4514_string()
    yield from (("asks for", name) for name in reading.names(request))
    yield "key", f"{_key(request.public_key())}, signed with {_hash(request)}"
    held = "its sender holds the key" if request.is_signature_valid else "its signature does not hold"
    yield "proof", held
    weak = keys.objection(request.public_key())
    if weak:
        yield "refused", weak


def _crl(crl: x509.CertificateRevocationList, context: Context) -> Lines:
    yield "list of", crl.issuer.rfc4514_string()
    number = reading.extension(crl, x509.CRLNumber)
    if number:
        yield "number", str(number.crl_number)
    end = crl.next_update_utc
    yield "valid", _validity(crl.last_update_utc, end, context.now) if end else "without end"
    for issuer in context.known:
        key = issuer.public_key()
        if issuer.subject == crl.issuer and isinstance(key, rsa.RSAPublicKey):
            yield "signature", "holds" if crl.is_signature_valid(key) else "does not hold"
    for entry in crl:
        yield "revoked", f"{entry.serial_number:x} on {reading.moment(entry.revocation_date_utc)}{_reason(entry)}"


def _reason(entry: x509.RevokedCertificate) -> str:
    told = reading.extension(entry, x509.CRLReason)
    return f", {told.reason.value}" if told else ""


def _key(key: object) -> str:
    return f"RSA {key.key_size}" if isinstance(key, rsa.RSAPublicKey) else type(key).__name__


def _hash(signed: x509.Certificate | x509.CertificateSigningRequest) -> str:
    algorithm = signed.signature_hash_algorithm
    return algorithm.name if algorithm else "no hash"


def _validity(begin: datetime, end: datetime, now: datetime) -> str:
    dates = f"{reading.moment(begin)} to {reading.moment(end)}"
    if now < begin:
        return f"{dates}, begins in {span(begin - now)}"
    return f"{dates}, {span(end - now)} left" if now <= end else f"{dates}, expired {span(now - end)} ago"


def span(time: timedelta) -> str:
    """A duration in its largest sensible unit, e.g. `29 d`, `16 h`, `5 min`."""
    minutes = int(time.total_seconds() // 60)
    if minutes >= 2 * 24 * 60:
        return f"{minutes // (24 * 60)} d"
    return f"{minutes // 60} h" if minutes >= 2 * 60 else f"{minutes} min"


def _plain(value: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)

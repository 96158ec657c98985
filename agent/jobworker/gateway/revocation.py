"""Which certificates are not accepted any more: signed lists (RFC 5280, section 5), and a plain one of serials.

grpc has no revocation, so it is checked here, on every call. Whoever has set up a list and lets it end is told so
by every call, all of which are refused: a list that nobody renews is not one that names nobody.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from jobworker.errors import PkiProblem, Unauthenticated
from jobworker.gateway import credentials
from jobworker.settings.schema import TlsSettings

_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)
_SERIAL = re.compile(r"(?:0x)?([0-9a-f]{1,40})", re.IGNORECASE)
# RFC 5280, 5.2: what must be understood of the critical ones that there may be.
_UNDERSTOOD = frozenset({x509.AuthorityKeyIdentifier.oid, x509.CRLNumber.oid})


@dataclass(frozen=True, slots=True)
class IssuerList:
    """What one CA has revoked.

    Attributes:
        ends: when a newer list must be there, in seconds of Unix time.
        dates: of each revocation, by serial number.
    """

    ends: float
    dates: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Revocations:
    """All that is known of revocations; by default nothing is asked for.

    Attributes:
        lists: by the issuer's name in DER.
        revoked_issuers: CAs that are revoked themselves, by name.
        serials: that no certificate may have, whoever issued it.
        required: each certificate's issuer must have a list, which has not ended.
        stale_allowed: it may have ended.
    """

    lists: Mapping[bytes, IssuerList] = field(default_factory=dict)
    revoked_issuers: frozenset[bytes] = frozenset()
    serials: frozenset[int] = frozenset()
    required: bool = False
    stale_allowed: bool = False

    @property
    def ends(self) -> float | None:
        """When the first of the lists ends, in seconds of Unix time; None without any."""
        return min((each.ends for each in self.lists.values()), default=None)

    def check(self, issuer: bytes, serial: int, now: float) -> None:
        """Check that a certificate is still accepted.

        Raises:
            Unauthenticated: it is revoked, or nobody can tell.
        """
        if serial in self.serials or issuer in self.revoked_issuers:
            raise Unauthenticated("the certificate is revoked")
        known = self.lists.get(issuer)
        if known is None:
            if self.required:
                raise Unauthenticated("the agent has no revocation list of the certificate's issuer (tls.crl)")
            return
        if (date := known.dates.get(serial)) is not None:
            raise Unauthenticated(f"the certificate was revoked at {_utc(date)}")
        if now > known.ends and not self.stale_allowed:
            problem = (
                f"the agent's revocation list ended at {_utc(known.ends)}: a newer one must be installed there"
            )
            raise Unauthenticated(problem)


def paths(tls: TlsSettings) -> tuple[str, ...]:
    """The files that `load` depends on."""
    lists = (tls.crl, tls.ca, tls.cert) if tls.crl else ()
    return (*lists, tls.revoked) if tls.revoked else lists


def load(tls: TlsSettings) -> Revocations:
    """Read and check the files that are set up.

    Raises:
        PkiProblem: one can't be used.
    """
    serials = frozenset(_serials(tls.revoked)) if tls.revoked else frozenset()
    if not tls.crl:
        return Revocations(serials=serials)
    authorities = _authorities(tls)
    lists = dict(_lists(tls.crl, authorities))
    revoked = frozenset(
        _name(authority.subject)
        for authority in authorities
        if (known := lists.get(_name(authority.issuer))) and authority.serial_number in known.dates
    )
    return Revocations(lists, revoked, serials, required=True, stale_allowed=tls.stale_crl == "allow")


def _authorities(tls: TlsSettings) -> list[x509.Certificate]:
    """The CAs in the bundle, and those that follow the agent's own certificate in its file, up to them."""
    trusted = credentials.certificates(tls.ca, credentials.read(tls.ca))
    for certificate in credentials.certificates(tls.cert, credentials.read(tls.cert))[1:]:
        if any(_issued(authority, certificate) for authority in trusted):
            trusted.append(certificate)
    return trusted


def _issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, *credentials.BAD_SIGNATURE):
        return False
    return True


def _lists(path: str, authorities: Sequence[x509.Certificate]) -> Iterator[tuple[bytes, IssuerList]]:
    blocks = _BLOCK.findall(credentials.read(path))
    if not blocks:
        raise PkiProblem(
            path, "holds no revocation list in PEM form", "make one, with `worker-pki crl` for example"
        )
    for block in blocks:
        try:
            yield _read_list(path, x509.load_pem_x509_crl(block), authorities)
        except (ValueError, UnsupportedAlgorithm):
            raise PkiProblem(path, "holds a revocation list that cannot be read") from None


def _read_list(
    path: str, crl: x509.CertificateRevocationList, authorities: Sequence[x509.Certificate]
) -> tuple[bytes, IssuerList]:
    who = crl.issuer.rfc4514_string()
    signers = [each for each in authorities if each.subject == crl.issuer and _may_sign_lists(each)]
    if not signers:
        fix = "add that CA's certificate to tls.ca"
        raise PkiProblem(path, f"holds a list of {who}, which is not among the CAs that are known", fix)
    if not any(_signed(crl, each) for each in signers):
        raise PkiProblem(path, f"holds a list that says it is of {who}, and is not signed with that CA's key")
    if crl.next_update_utc is None:
        raise PkiProblem(path, f"holds a list of {who} that does not say when the next one comes")
    for extension in crl.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            problem = f"holds a list of {who} with the critical extension {extension.oid.dotted_string}"
            raise PkiProblem(path, problem, "give the agent complete lists: not deltas, nor parts")
    dates = {entry.serial_number: entry.revocation_date_utc.timestamp() for entry in crl}
    return _name(crl.issuer), IssuerList(crl.next_update_utc.timestamp(), dates)


def _may_sign_lists(authority: x509.Certificate) -> bool:
    try:
        return authority.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True


def _signed(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(authority.public_key())  # type: ignore[arg-type] # another kind: TypeError
    except TypeError:
        return False


def _serials(path: str) -> Iterator[int]:
    text = credentials.read(path).decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        if serial := line.partition("#")[0].strip().replace(":", ""):
            matched = _SERIAL.fullmatch(serial)
            if not matched:
                problem = f"line {number} is not a serial number in hexadecimal: {serial!r:.60}"
                raise PkiProblem(path, problem, "`worker-pki show` tells a certificate's")
            yield int(matched[1], 16)


def _name(name: x509.Name) -> bytes:
    return name.public_bytes()


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))

"""Which certificates are not accepted any more: signed lists (RFC 5280, section 5), and a plain one of serials.

grpc has no revocation, so it is checked here, on every call. Whoever has set up a list and lets it end is told so
by every call, all of which are refused: a list that nobody renews is not one that names nobody.

A list belongs to a CA's key, and so does a certificate: names alone decide nothing, since a CA that got a new key
has the old name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from jobworker.errors import PkiProblem, Unauthenticated
from jobworker.gateway import credentials
from jobworker.identity import utc
from jobworker.settings.schema import TlsSettings
from jobworker.unreadable import UNREADABLE

_MAX_LIST_BYTES = 64 * 1024 * 1024
_BEGIN, _END = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"
_SERIAL = re.compile(r"(?:0x|serial=)?0*([0-9a-f]{1,40})", re.IGNORECASE)
# They make a list say less than all of what its CA has revoked, or more (RFC 5280, 5.2.4 and 5.2.5).
_PARTIAL = (x509.DeltaCRLIndicator, x509.IssuingDistributionPoint)
_UNDERSTOOD = frozenset({x509.AuthorityKeyIdentifier.oid, x509.CRLNumber.oid})
# By how much clocks may differ, in seconds.
_SKEW = 300
_CACHED = 1024


@dataclass(frozen=True, slots=True)
class IssuerList:
    """What one CA has revoked.

    Attributes:
        begins: when it was made, in seconds of Unix time.
        ends: when a newer one must be there.
        dates: of each revocation, by serial number.
    """

    begins: float
    ends: float
    dates: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that is known.

    Attributes:
        above: who issued its certificate; None for a root, or where that is not known.
        listed: what it has revoked, if there is a list.
    """

    certificate: x509.Certificate
    above: Authority | None
    listed: IssuerList | None


@dataclass(slots=True)
class Revocations:
    """All that is known of revocations; by default nothing is asked for.

    Attributes:
        authorities: those that are known; empty if nothing is set up.
        serials: that no certificate may have, whoever issued it, nor a CA above it.
        lists_needed: who has issued a certificate must have a list.
        stale_allowed: lists may have ended.
    """

    authorities: tuple[Authority, ...] = ()
    serials: frozenset[int] = frozenset()
    lists_needed: bool = False
    stale_allowed: bool = False
    _issuers: dict[bytes, Authority | None] = field(default_factory=dict)

    @property
    def ends(self) -> float | None:
        """When the first of the lists ends, in seconds of Unix time; None without any."""
        return min((each.listed.ends for each in self.authorities if each.listed), default=None)

    def check(self, certificate: x509.Certificate, now: float) -> None:
        """Check that a certificate is still accepted.

        Raises:
            Unauthenticated: it is revoked, or nobody can tell.
        """
        if certificate.serial_number in self.serials:
            raise Unauthenticated("the certificate is revoked")
        issuer = self._issuer(certificate)
        if self.lists_needed and (issuer is None or issuer.listed is None):
            raise Unauthenticated("the agent has no revocation list of the certificate's issuer (tls.crl)")
        # Those above need no list, but what they have is heeded.
        while issuer:
            if issuer.listed:
                self._check_listed(issuer.listed, certificate, now)
            if issuer.certificate.serial_number in self.serials:
                raise Unauthenticated("the certificate's issuer is revoked")
            certificate, issuer = issuer.certificate, issuer.above

    def _check_listed(self, listed: IssuerList, certificate: x509.Certificate, now: float) -> None:
        if (date := listed.dates.get(certificate.serial_number)) is not None:
            raise Unauthenticated(f"the certificate, or that of its issuer, was revoked at {utc(date)}")
        if now > listed.ends and not self.stale_allowed:
            problem = f"the agent's revocation list ended at {utc(listed.ends)}"
            raise Unauthenticated(f"{problem}: a newer one must be installed there")

    def _issuer(self, certificate: x509.Certificate) -> Authority | None:
        """Whose key has signed the certificate; found out once for each."""
        key = certificate.signature
        if key not in self._issuers:
            if len(self._issuers) >= _CACHED:
                self._issuers.clear()
            self._issuers[key] = next(
                (each for each in self.authorities if credentials.issued(each.certificate, certificate)), None
            )
        return self._issuers[key]


def paths(tls: TlsSettings) -> tuple[str, ...]:
    """The files that `load` depends on."""
    named = tuple(filter(None, (tls.crl, tls.revoked)))
    return (*named, tls.ca, tls.cert) if named else ()


def load(tls: TlsSettings, before: Revocations | None = None) -> Revocations:
    """Read and check the files that are set up.

    Args:
        tls: which they are.
        before: what was in use until now: nothing may be taken back.

    Raises:
        PkiProblem: one can't be used.
    """
    if not paths(tls):
        return Revocations()
    serials = frozenset(_serials(tls.revoked)) if tls.revoked else frozenset()
    known = _known(tls)
    lists = _newest(tls.crl, known) if tls.crl else {}
    try:
        made = _authorities(known, lists)
    except CycleError:
        fix = "add the root above them, or leave one of them out"
        raise PkiProblem(tls.ca, "holds CAs that have signed each other, and no root", fix) from None
    if before:
        _check_no_older(tls.crl, made, before)
    return Revocations(made, serials, lists_needed=bool(tls.crl), stale_allowed=tls.stale_crl == "allow")


def _authorities(known: Sequence[x509.Certificate], lists: Mapping[int, IssuerList]) -> tuple[Authority, ...]:
    """All that are known, each with the one above it.

    Raises:
        CycleError: some are above themselves.
    """
    above = {number: _above(own, known) for number, own in enumerate(known)}
    made: dict[int, Authority] = {}
    for number in TopologicalSorter(above).static_order():
        issuer = next((made[each] for each in above[number]), None)
        made[number] = Authority(known[number], issuer, lists.get(number))
    return tuple(made[number] for number in above)


def _above(own: x509.Certificate, known: Sequence[x509.Certificate]) -> list[int]:
    """The place of the CA that has issued a certificate, if any: of its root's, where it has others as well."""
    if own.subject == own.issuer:
        return []
    issuers = (number for number, each in enumerate(known) if credentials.issued(each, own))
    return sorted(issuers, key=lambda number: known[number].subject != known[number].issuer)[:1]


def _known(tls: TlsSettings) -> list[x509.Certificate]:
    """The CAs in the bundle, and those that follow the agent's own certificate in its file, up to them."""
    known = credentials.certificates(tls.ca, credentials.read(tls.ca))
    rest = credentials.certificates(tls.cert, credentials.read(tls.cert))[1:]
    while found := [
        each for each in rest if credentials.is_ca(each) and any(credentials.issued(ca, each) for ca in known)
    ]:
        known += found
        rest = [each for each in rest if each not in found]
    return known


def _newest(path: str, known: Sequence[x509.Certificate]) -> dict[int, IssuerList]:
    """The newest list of each CA, by its place among those that are known."""
    lists: dict[int, IssuerList] = {}
    for crl in _lists(path):
        read = _read_list(path, crl)
        signers = list(_signers(path, crl, known))
        for number in signers:
            if number not in lists or lists[number].begins < read.begins:
                lists[number] = read
    return lists


def _lists(path: str) -> Iterator[x509.CertificateRevocationList]:
    blocks = list(_blocks(path, credentials.read(path, _MAX_LIST_BYTES)))
    if not blocks:
        fix = "make one, with `worker-pki crl` for example, or convert it: `openssl crl -inform DER`"
        raise PkiProblem(path, "holds no revocation list in PEM form", fix)
    for block in blocks:
        try:
            yield x509.load_pem_x509_crl(block)
        except UNREADABLE:
            raise PkiProblem(path, "holds a revocation list that cannot be read") from None


def _blocks(path: str, data: bytes) -> Iterator[bytes]:
    start = data.find(_BEGIN)
    while start >= 0:
        end = data.find(_END, start)
        following = data.find(_BEGIN, start + 1)
        if end < 0 or 0 <= following < end:
            raise PkiProblem(path, "holds a revocation list that is cut off")
        yield data[start : end + len(_END)]
        start = following


def _read_list(path: str, crl: x509.CertificateRevocationList) -> IssuerList:
    who = crl.issuer.rfc4514_string()
    if crl.next_update_utc is None:
        raise PkiProblem(path, f"holds a list of {who} that does not say when the next one comes")
    begins = crl.last_update_utc.timestamp()
    if begins > time.time() + _SKEW:
        raise PkiProblem(path, f"holds a list of {who} from {utc(begins)}", "compare the clocks of both hosts")
    try:
        extensions = list(crl.extensions)
    except UNREADABLE:
        raise PkiProblem(path, f"holds a list of {who} whose extensions cannot be read") from None
    for extension in extensions:
        if isinstance(extension.value, _PARTIAL) or (extension.critical and extension.oid not in _UNDERSTOOD):
            problem = f"holds a list of {who} with the extension {extension.oid.dotted_string}"
            raise PkiProblem(path, problem, "give the agent complete lists: not deltas, nor parts")
    dates = {entry.serial_number: entry.revocation_date_utc.timestamp() for entry in crl}
    return IssuerList(begins, crl.next_update_utc.timestamp(), dates)


def _signers(path: str, crl: x509.CertificateRevocationList, known: Sequence[x509.Certificate]) -> Iterable[int]:
    """Which of the CAs has signed a list: of one key there may be several certificates."""
    who = crl.issuer.rfc4514_string()
    named = [n for n, each in enumerate(known) if each.subject == crl.issuer and credentials.may_sign_lists(each)]
    if not named:
        fix = "add that CA's certificate to tls.ca"
        raise PkiProblem(path, f"holds a list of {who}, which is not among the CAs that are known", fix)
    signers = [number for number in named if _signed(crl, known[number])]
    if not signers:
        raise PkiProblem(path, f"holds a list that says it is of {who}, and is not signed with that CA's key")
    return signers


def _signed(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(authority.public_key())  # type: ignore[arg-type] # another kind: TypeError
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def _check_no_older(path: str, made: Sequence[Authority], before: Revocations) -> None:
    now = {each.certificate: each.listed for each in made}
    for each in before.authorities:
        if each.listed and each.certificate in now:
            listed, who = now[each.certificate], each.certificate.subject.rfc4514_string()
            if listed is None:
                raise PkiProblem(path, f"holds no list of {who} any more")
            if listed.begins < each.listed.begins:
                raise PkiProblem(path, f"holds a list of {who} that is older than the one in use")


def _serials(path: str) -> Iterator[int]:
    text = credentials.read(path, _MAX_LIST_BYTES).decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        if serial := line.partition("#")[0].strip().replace(":", ""):
            matched = _SERIAL.fullmatch(serial)
            if not matched:
                problem = f"line {number} is not a serial number in hexadecimal: {serial!r:.60}"
                raise PkiProblem(path, problem, "`worker-pki show` tells a certificate's")
            yield int(matched[1], 16)

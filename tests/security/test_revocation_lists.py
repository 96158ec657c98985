"""Lists of revoked certificates: good, old, forged or broken."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from jobworker.errors import PkiProblem, Unauthenticated
from jobworker.gateway import revocation
from jobworker.settings.schema import TlsSettings
from support import certs
from support.certs import Recipe, make

CA = certs.dev_pki().pair("ca")
# Between that root and the users.
INTERMEDIATE = make(Recipe("between", uris=(), usage=None, roles=(), key="other4096", ca=True), CA)
HOST = Recipe("host", uris=(), hosts=("127.0.0.1",), usage=certs.SERVER_AUTH, roles=(), key="foreign4096")


def tls(directory: Path, **files: bytes) -> TlsSettings:
    """Settings with these files, by setting."""
    pair = make(HOST, INTERMEDIATE).save(directory, "server", chain=(INTERMEDIATE,))
    made = TlsSettings(pair.ca, pair.cert, pair.key)
    for name, data in files.items():
        (directory / name).write_bytes(data)
        made = changed(made, name, directory / name)
    return made


def changed(tls: TlsSettings, name: str, path: Path) -> TlsSettings:
    fields: dict[str, Any] = {name: str(path)}
    return replace(tls, **fields)


def check(revocations: revocation.Revocations, who: certs.Pair, now: float | None = None) -> None:
    revocations.check(who.certificate, now or time.time())


def test_who_is_named_is_out_and_others_are_not(tmp_path: Path) -> None:
    gone, other = make(Recipe(), CA), make(Recipe(), CA)
    known = revocation.load(tls(tmp_path, crl=certs.crl(CA, 12345, gone)))
    with pytest.raises(Unauthenticated, match="was revoked at 20"):
        check(known, gone)
    check(known, other)


def test_a_list_that_has_ended_vouches_for_nobody(tmp_path: Path) -> None:
    made = tls(tmp_path, crl=certs.crl(CA, 1, ends=timedelta(seconds=-5)))
    with pytest.raises(Unauthenticated, match=r"revocation list ended at 20.*a newer one must be installed"):
        check(revocation.load(made), make(Recipe(), CA))
    allowed = revocation.load(replace(made, stale_crl="allow"))
    check(allowed, make(Recipe(), CA))


def test_an_old_list_still_knows_who_is_out(tmp_path: Path) -> None:
    gone = make(Recipe(), CA)
    made = tls(tmp_path, crl=certs.crl(CA, gone, ends=timedelta(seconds=-5)))
    with pytest.raises(Unauthenticated, match="was revoked at"):
        check(revocation.load(replace(made, stale_crl="allow")), gone)


def test_each_issuer_needs_a_list(tmp_path: Path) -> None:
    known = revocation.load(tls(tmp_path, crl=certs.crl(CA)))
    with pytest.raises(Unauthenticated, match=r"no revocation list of the certificate's issuer \(tls\.crl\)"):
        check(known, make(Recipe(), INTERMEDIATE))
    both = revocation.load(tls(tmp_path, crl=certs.crl(CA) + certs.crl(INTERMEDIATE, 7)))
    check(both, make(Recipe(), INTERMEDIATE))
    assert both.ends is not None
    assert 0 < both.ends - time.time() < 3700


def test_a_ca_that_is_revoked_takes_all_it_issued_along(tmp_path: Path) -> None:
    known = revocation.load(tls(tmp_path, crl=certs.crl(CA, INTERMEDIATE) + certs.crl(INTERMEDIATE)))
    with pytest.raises(Unauthenticated, match="revoked"):
        check(known, make(Recipe(), INTERMEDIATE))
    check(known, make(Recipe(), CA))


def test_so_does_one_higher_up(tmp_path: Path) -> None:
    lower = make(Recipe("lower", uris=(), usage=None, roles=(), key="rsa4096", ca=True), INTERMEDIATE)
    own = make(HOST, lower).save(tmp_path, "server", chain=(lower, INTERMEDIATE))
    (tmp_path / "crl").write_bytes(certs.crl(CA, INTERMEDIATE) + certs.crl(lower))
    made = TlsSettings(own.ca, own.cert, own.key, crl=str(tmp_path / "crl"))
    with pytest.raises(Unauthenticated, match="revoked"):
        check(revocation.load(made), make(Recipe(), lower))
    (tmp_path / "crl").write_bytes(certs.crl(CA) + certs.crl(lower))
    check(revocation.load(made), make(Recipe(), lower))
    (tmp_path / "crl").write_bytes(certs.crl(CA, ends=timedelta(seconds=-1)) + certs.crl(lower))
    with pytest.raises(Unauthenticated, match="list ended"):
        check(revocation.load(made), make(Recipe(), lower))


def test_a_ca_of_the_same_name_is_another_one(tmp_path: Path) -> None:
    """After a new key: the root's list names the old one, whose clients have certificates yet."""
    old = make(Recipe("between", uris=(), usage=None, roles=(), key="rsa4096", ca=True), CA)
    known = revocation.load(tls(tmp_path, crl=certs.crl(CA, old) + certs.crl(INTERMEDIATE)))
    check(known, make(Recipe(), INTERMEDIATE))
    with pytest.raises(Unauthenticated):
        check(known, make(Recipe(), old))
    both = replace(tls(tmp_path), ca=str(tmp_path / "both"), crl=str(tmp_path / "crl"))
    (tmp_path / "both").write_bytes(CA.cert_pem + old.cert_pem)
    check(revocation.load(both), make(Recipe(), INTERMEDIATE))
    with pytest.raises(Unauthenticated):
        check(revocation.load(both), make(Recipe(), old))


def test_of_two_lists_the_newer_counts(tmp_path: Path) -> None:
    gone = make(Recipe(), CA)
    older, newer = certs.crl(CA, begins=timedelta(days=-2)), certs.crl(CA, gone)
    for lists in (older + newer, newer + older):
        with pytest.raises(Unauthenticated):
            check(revocation.load(tls(tmp_path, crl=lists)), gone)


def test_a_ca_that_may_not_sign_lists(tmp_path: Path) -> None:
    lower = make(Recipe("lower", uris=(), usage=None, roles=(), key="rsa4096", ca=True, lists=False), CA)
    made = replace(tls(tmp_path, crl=certs.crl(CA) + certs.crl(lower)), ca=str(tmp_path / "ca"))
    (tmp_path / "ca").write_bytes(CA.cert_pem + lower.cert_pem)
    with pytest.raises(PkiProblem, match="CN=lower, which is not among the CAs that are known"):
        revocation.load(made)


def test_nothing_is_taken_back(tmp_path: Path) -> None:
    made = tls(tmp_path, crl=certs.crl(CA) + certs.crl(INTERMEDIATE))
    before = revocation.load(made)
    (tmp_path / "crl").write_bytes(certs.crl(INTERMEDIATE))
    with pytest.raises(PkiProblem, match=r"holds no list of .* any more"):
        revocation.load(made, before)
    (tmp_path / "crl").write_bytes(certs.crl(CA, begins=timedelta(days=-2)) + certs.crl(INTERMEDIATE))
    with pytest.raises(PkiProblem, match="is older than the one in use"):
        revocation.load(made, before)
    (tmp_path / "crl").write_bytes(certs.crl(CA, 1, begins=timedelta(0)) + certs.crl(INTERMEDIATE))
    assert revocation.load(made, before).ends


def test_long_lists_count_to_their_end(tmp_path: Path) -> None:
    gone = make(Recipe(), CA)
    others = [(1 << 150) + number for number in range(30_000)]
    serials = "\n".join(f"{number:x}" for number in (*others, gone.certificate.serial_number))
    made = tls(tmp_path, crl=certs.crl(CA, *others, gone))
    assert (tmp_path / "crl").stat().st_size > 1 << 20
    for known in (revocation.load(made), revocation.load(tls(tmp_path, revoked=serials.encode()))):
        with pytest.raises(Unauthenticated, match="revoked"):
            check(known, gone)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    made = tls(tmp_path, revoked=b"1\n")
    os.truncate(made.revoked, 65 << 20)
    with pytest.raises(PkiProblem, match="is larger than 64 MiB"):
        revocation.load(made)


@pytest.mark.parametrize("setting", ["crl", "ca", "revoked"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, setting: str) -> None:
    made = tls(tmp_path, crl=certs.crl(CA))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(PkiProblem, match="is not a regular file"):
        revocation.load(changed(made, setting, tmp_path / "fifo"))


def test_without_lists_nobody_is_asked_for_one(tmp_path: Path) -> None:
    known = revocation.load(tls(tmp_path))
    check(known, make(Recipe(), INTERMEDIATE))
    assert known.ends is None
    assert revocation.paths(tls(tmp_path)) == ()


def test_a_plain_list_of_serials(tmp_path: Path) -> None:
    gone, also, other = (make(Recipe(), CA) for _ in range(3))
    serials = [f"{who.certificate.serial_number:x}" for who in (gone, also)]
    with_colons = ":".join(serials[1].zfill(40)[at : at + 2] for at in range(0, 40, 2))
    text = f"# lost on a train\nserial=00{serials[0].upper()}  # a laptop\n\n{with_colons}\n"
    known = revocation.load(tls(tmp_path, revoked=text.encode()))
    for who in (gone, also):
        with pytest.raises(Unauthenticated, match="revoked"):
            check(known, who)
    check(known, other)


@pytest.mark.parametrize("crl", [b"", certs.crl(CA) + certs.crl(INTERMEDIATE)])
def test_a_plain_list_takes_all_along_that_a_ca_on_it_has_issued(tmp_path: Path, crl: bytes) -> None:
    serials = f"{INTERMEDIATE.certificate.serial_number:x}".encode()
    lists = {"crl": crl} if crl else {}
    made = tls(tmp_path, revoked=serials, **lists)
    assert {made.revoked, made.ca, made.cert} <= {*revocation.paths(made)}
    known = revocation.load(made)
    with pytest.raises(Unauthenticated, match="the certificate's issuer is revoked"):
        check(known, make(Recipe(), INTERMEDIATE))
    check(known, make(Recipe(), CA))
    root = revocation.load(tls(tmp_path, revoked=f"{CA.certificate.serial_number:x}".encode(), **lists))
    for issuer in (CA, INTERMEDIATE):
        with pytest.raises(Unauthenticated, match="the certificate's issuer is revoked"):
            check(root, make(Recipe(), issuer))


def crossed() -> tuple[certs.Pair, certs.Pair, certs.Pair, certs.Pair]:
    """Two roots, and certificates of theirs by which each vouches for the other."""
    one, two = (
        Recipe(name, uris=(), usage=None, roles=(), key=key, ca=True)
        for name, key in (("one", "other4096"), ("two", "foreign4096"))
    )
    first, second = make(one), make(two)
    return first, second, make(one, second), make(two, first)


def test_cas_that_have_signed_each_other_are_known_by_their_roots(tmp_path: Path) -> None:
    first, second, first_by_second, second_by_first = crossed()
    bundle = b"".join(pair.cert_pem for pair in (first_by_second, second_by_first, first, second))
    known = revocation.load(tls(tmp_path, revoked=b"1234", ca=bundle))
    above = {authority.certificate.serial_number: authority.above for authority in known.authorities}
    for own, root in ((first_by_second, second), (second_by_first, first)):
        issuer = above[own.certificate.serial_number]
        assert issuer
        assert issuer.certificate == root.certificate


def test_without_their_roots_such_are_refused(tmp_path: Path) -> None:
    bundle = b"".join(pair.cert_pem for pair in crossed()[2:])
    with pytest.raises(PkiProblem, match="ca: holds CAs that have signed each other, and no root; add the root"):
        revocation.load(tls(tmp_path, revoked=b"1234", ca=bundle))


def test_a_plain_list_alone_asks_for_no_list_of_the_issuer(tmp_path: Path) -> None:
    stranger = make(Recipe("stranger", uris=(), usage=None, roles=(), key="rsa4096", ca=True), CA)
    known = revocation.load(tls(tmp_path, revoked=b"1234"))
    for issuer in (CA, INTERMEDIATE, stranger):
        check(known, make(Recipe(), issuer))


_PARTIAL = x509.IssuingDistributionPoint(
    full_name=None,
    relative_name=None,
    only_contains_user_certs=False,
    only_contains_ca_certs=False,
    only_some_reasons=frozenset({x509.ReasonFlags.key_compromise}),
    indirect_crl=False,
    only_contains_attribute_certs=False,
)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("crl", lambda: b"", "holds no revocation list in PEM form"),
        ("crl", lambda: CA.cert_pem, "holds no revocation list in PEM form"),
        ("crl", lambda: certs.crl(CA).replace(b"MII", b"AAA", 1), "cannot be read"),
        ("crl", lambda: certs.crl(CA)[:-40], "holds a revocation list that is cut off"),
        ("crl", lambda: certs.crl(certs.foreign_ca()), "is not signed with that CA's key"),
        ("crl", lambda: certs.crl(CA, signer=INTERMEDIATE), "is not signed with that CA's key"),
        ("crl", lambda: certs.crl(make(Recipe("nobody"))), "CN=nobody, which is not among the CAs that are known"),
        ("crl", lambda: certs.crl(make(HOST, INTERMEDIATE)), "CN=host, which is not among the CAs"),
        ("crl", lambda: certs.crl(CA, extra=x509.DeltaCRLIndicator(1)), "extension 2.5.29.27"),
        ("crl", lambda: certs.crl(CA, extra=_PARTIAL), "extension 2.5.29.28"),
        ("crl", lambda: certs.crl(CA) + certs.crl(INTERMEDIATE)[:-100], "holds a revocation list that is cut off"),
        ("crl", lambda: certs.crl(CA)[:-100] + certs.crl(INTERMEDIATE), "holds a revocation list that is cut off"),
        ("crl", lambda: b"-----BEGIN X509 CRL-----\n" * 40_000, "holds a revocation list that is cut off"),
        ("crl", lambda: certs.crl(CA, extra=x509.DeltaCRLIndicator(1), critical=False), "not deltas"),
        ("crl", lambda: certs.crl(CA, begins=timedelta(minutes=30)), "compare the clocks of both hosts"),
        ("revoked", lambda: b"12\n-5\n", "line 2 is not a serial number in hexadecimal: '-5'"),
        ("revoked", lambda: b"12\n\xff\n", "line 2 is not a serial number"),
        ("revoked", lambda: b"1" * 41, "line 1 is not a serial number"),
    ],
)
def test_a_file_that_is_not_to_be_used(tmp_path: Path, name: str, data: Callable[[], bytes], said: str) -> None:
    with pytest.raises(PkiProblem) as caught:
        revocation.load(tls(tmp_path, **{name: data()}))
    assert str(tmp_path / name) in str(caught.value)
    assert said in str(caught.value)

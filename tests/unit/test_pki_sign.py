"""`worker-pki sign`: what is believed of a request, and what is not."""

from __future__ import annotations

import ipaddress
import tempfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from jobworker.errors import PkiProblem
from jobworker.identity import DEFAULT_ROLE_OID, Role, encode_role
from jobworker_pki import requests
from support import certs
from support.pki import Pki, copied, openssl, request, snapshot

A, B = x509.DNSName("a.example.org"), x509.DNSName("b.example.org")
ALICE = x509.UniformResourceIdentifier("spiffe://example.org/user/alice")
WRITER = x509.UnrecognizedExtension(x509.ObjectIdentifier(DEFAULT_ROLE_OID), encode_role(Role.WRITER))


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return copied(tmp_path)


def san(certificate: x509.Certificate) -> list[x509.GeneralName]:
    return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def test_only_confirmed_names_and_nothing_else_of_the_request(pki: Pki, tmp_path: Path) -> None:
    extra = (x509.BasicConstraints(ca=True, path_length=None), WRITER)
    csr = request(tmp_path / "csr", A, B, ALICE, extra=extra)
    code, out, err = pki.run("sign", csr, "--san", "a.example.org")
    assert code == 0
    assert f"{pki.path('hosts', 'a.example.org.pem')}: made" in out
    assert err == "left out, though asked for: DNS:b.example.org, URI:spiffe://example.org/user/alice\n"
    certificate = pki.certificate("hosts", "a.example.org.pem")
    assert certificate.subject.rfc4514_string() == "CN=a.example.org"
    assert san(certificate) == [A]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert DEFAULT_ROLE_OID not in {one.oid.dotted_string for one in certificate.extensions}
    assert certificate.public_key() == certs.key().public_key()
    assert not Path(pki.path("hosts", "a.example.org.key")).exists()
    chain = ("-CAfile", pki.path("ca.pem"), "-untrusted", pki.path("hosts", "a.example.org.pem"))
    verdict = openssl("verify", "-x509_strict", *chain, pki.path("hosts", "a.example.org.pem"))
    assert verdict.endswith("pem: OK\n")


def test_what_a_request_asks_for_does_nothing_to_a_terminal(pki: Pki, tmp_path: Path) -> None:
    csr = request(tmp_path / "csr", A, x509.DNSName("\x1b[2K\x1b]0;pwned\x07b.example.org"))
    refused = pki.refused("sign", csr)
    code, _, err = pki.run("sign", csr, "--san", "a.example.org")
    assert code == 0
    for said in (refused, err):
        assert r"\x1b[2K\x1b]0;pwned\x07b.example.org" in said
        assert "\x1b" not in said


def test_all_names_at_once_and_signed_once(pki: Pki, tmp_path: Path) -> None:
    csr = request(tmp_path / "csr", A, B)
    pki.ok("sign", csr, "--accept-names", "--name", "web")
    assert san(pki.certificate("hosts", "web.pem")) == [A, B]
    before = snapshot(pki.directory)
    assert "nothing to do" in pki.ok("sign", csr, "--accept-names", "--name", "web")
    assert snapshot(pki.directory) == before
    other = request(tmp_path / "other", A, B, key="other4096")
    assert "web.pem: is for another key; revoke" in pki.refused("sign", other, "--accept-names", "--name", "web")


def test_a_user(pki: Pki, tmp_path: Path) -> None:
    csr = request(tmp_path / "csr", ALICE)
    pki.ok("sign", csr, "--name", "alice", "--role", "READER")
    certificate = pki.certificate("users", "alice.pem")
    assert san(certificate) == [ALICE]
    role = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(DEFAULT_ROLE_OID))
    assert isinstance(role.value, x509.UnrecognizedExtension)
    assert role.value.value == encode_role(Role.READER)
    assert not role.critical


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        ((A, B), (), "asks for a.example.org, b.example.org; confirm each with --san NAME, or all with"),
        ((A,), ("--san", "b.example.org"), "does not ask for b.example.org; it asks for a.example.org"),
        ((), ("--san", "a.example.org"), "asks for no host name or address in a subjectAltName"),
        ((x509.DNSName("x.test"),), ("--accept-names",), "x.test is not in or below example.org"),
        ((x509.DNSName("*.example.org"),), ("--accept-names",), "neither a host name nor an IP address"),
        ((ALICE,), ("--name", "bob", "--role", "READER"), "it must ask for spiffe://example.org/user/bob"),
        ((ALICE, ALICE), ("--name", "alice", "--role", "READER"), "and no other URI"),
        ((A,), ("--name", "alice", "--role", "READER"), "asks for no URI"),
        ((ALICE,), ("--role", "READER"), "a user is confirmed by --name alone"),
        ((A,), ("--accept-names", "--name", "../a"), "'../a' cannot name a file"),
    ],
)
def test_names_that_are_not_to_be_had(
    pki: Pki, tmp_path: Path, names: tuple[x509.GeneralName, ...], options: tuple[str, ...], expected: str
) -> None:
    assert expected in pki.refused("sign", request(tmp_path / "csr", *names), *options)


@pytest.mark.parametrize(
    ("key", "expected"), [("rsa2048", "the key has 2048 bits, fewer than 4096"), ("p256", "the key is not RSA")]
)
def test_keys_below_the_policy(pki: Pki, tmp_path: Path, key: str, expected: str) -> None:
    assert expected in pki.refused("sign", request(tmp_path / "csr", A, key=key), "--accept-names")


def test_without_proof_of_possession(pki: Pki, tmp_path: Path) -> None:
    csr = x509.load_pem_x509_csr(Path(request(tmp_path / "csr", A)).read_bytes())
    mine, theirs = (
        certs.key(kind)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        for kind in ("rsa4096", "other4096")
    )
    forged = tmp_path / "forged"
    forged.write_bytes(csr.public_bytes(serialization.Encoding.DER).replace(mine, theirs))
    assert "its signature does not hold" in pki.refused("sign", str(forged), "--accept-names")


def test_a_revoked_key_does_not_come_back(pki: Pki, tmp_path: Path) -> None:
    csr = request(tmp_path / "csr", A)
    pki.ok("sign", csr, "--accept-names")
    pki.ok("revoke", pki.path("hosts", "a.example.org.pem"), "--reason", "keyCompromise")
    assert "its key has been revoked; make a new key" in pki.refused("sign", csr, "--accept-names")
    fresh = request(tmp_path / "fresh", A, key="other4096")
    assert ": made" in pki.ok("sign", fresh, "--accept-names")


def test_a_revoked_key_is_not_left_beside_the_certificate_of_another(pki: Pki, tmp_path: Path) -> None:
    pki.ok("issue", "user", "alice", "--role", "READER")
    path, key = pki.path("users", "alice.pem"), Path(pki.path("users", "alice.key"))
    pki.ok("revoke", path, "--reason", "keyCompromise")
    pki.ok("sign", request(tmp_path / "csr", ALICE), "--name", "alice", "--role", "READER")
    assert not key.exists()
    pki.ok("renew", path, "--force")
    assert pki.certificate("users", "alice.pem").public_key() == certs.key().public_key()


def test_a_key_that_may_still_be_good_is_neither_lost_nor_taken_for_the_requests(pki: Pki, tmp_path: Path) -> None:
    csr, key = request(tmp_path / "csr", ALICE), Path(pki.path("users", "alice.key"))
    key.parent.mkdir(mode=0o700, exist_ok=True)
    key.touch(0o600)
    key.write_bytes(certs.dev_pki().pair("reader").key_pem)
    words = ("sign", csr, "--name", "alice", "--role", "READER")
    assert f"{key}: is not the key of the request; move it away, and sign again" in pki.refused(*words)
    # Its own may lie there, made where the PKI is.
    key.write_bytes(certs.dev_pki().pair("writer").key_pem)
    assert ": made" in pki.ok(*words)
    assert key.read_bytes() == certs.dev_pki().pair("writer").key_pem


@pytest.mark.parametrize("content", [b"", b"\0", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", b"x" * 100_000])
def test_what_is_no_request(pki: Pki, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "csr").write_bytes(content)
    assert "holds no certificate signing request" in pki.refused("sign", str(tmp_path / "csr"), "--accept-names")
    assert "cannot be read: No such file" in pki.refused("sign", str(tmp_path / "none"), "--accept-names")


def test_confirming_does_not_depend_on_how_an_address_is_written(pki: Pki, tmp_path: Path) -> None:
    csr = request(tmp_path / "csr", x509.IPAddress(ipaddress.ip_address("10.0.0.7")), A)
    assert "'10.0.0.07' is neither a host name" in pki.refused("sign", csr, "--san", "10.0.0.07")
    pki.ok("sign", csr, "--san", "10.0.0.7")
    assert len(san(pki.certificate("hosts", "10.0.0.7.pem"))) == 1


@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), keep=st.floats(0.5, 1))
@settings(deadline=None, max_examples=300)
def test_a_damaged_request_is_refused_in_its_own_words(at: float, byte: int, keep: float) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "csr"
        der = x509.load_pem_x509_csr(Path(request(path, A, ALICE)).read_bytes()).public_bytes(
            serialization.Encoding.DER
        )
        damaged = bytearray(der[: int(len(der) * keep)])
        damaged[int(len(damaged) * at)] ^= byte
        path.write_bytes(damaged)
        intact = bytes(damaged) == der
        if intact:
            assert requests.read(str(path)).hosts == ("a.example.org",)
        else:
            with pytest.raises(PkiProblem):
                requests.read(str(path))

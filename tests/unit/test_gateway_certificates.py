"""Who a peer is, by every kind of certificate."""

from __future__ import annotations

import ssl
import time
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given
from hypothesis import strategies as st

from jobworker.errors import Unauthenticated
from jobworker.gateway.certificate_rules import CertificateRules
from jobworker.gateway.certificates import PeerReader, read_peer
from jobworker.gateway.revocation import Revocations
from jobworker.identity import DEFAULT_ROLE_OID, Role, encode_role
from jobworker.settings.schema import TlsSettings
from support import certs
from support.certs import Recipe, make

TLS = TlsSettings("", "", "")
RULES = CertificateRules(TLS.certificates)
# TLS itself refuses these: by their chain or their dates, which `read_peer` does not look at.
BY_TLS = {"expired", "not_yet_valid", "foreign_ca", "self_signed", "signed_by_leaf"}
ODD = {name: pair for name, pair in certs.odd_clients().items() if name not in BY_TLS}


def good(recipe: Recipe | None = None) -> bytes:
    return make(recipe or Recipe(), certs.dev_pki().pair("ca")).cert_pem


WHOLE = good()


def context(pem: bytes, version: bytes = b"TLSv1.3") -> dict[str, list[bytes]]:
    return {"ssl_tls_version": [version], "x509_pem_cert": [pem]}


@pytest.mark.parametrize("role", Role)
def test_a_good_certificate(role: Role) -> None:
    pair = make(Recipe(roles=(encode_role(role),)), certs.dev_pki().pair("ca"))
    principal = read_peer(pair.cert_pem, DEFAULT_ROLE_OID, RULES).principal
    assert (principal.uri, principal.role) == (certs.URI, role)
    assert int(principal.serial, 16) == pair.certificate.serial_number


def test_other_names_do_no_harm() -> None:
    peer = read_peer(good(Recipe(hosts=("laptop.example.org", "10.0.0.1"))), DEFAULT_ROLE_OID, RULES)
    assert peer.principal.uri == certs.URI


@pytest.mark.parametrize("name", ODD)
def test_an_odd_certificate_is_nobody(name: str) -> None:
    with pytest.raises(Unauthenticated):
        read_peer(ODD[name].cert_pem, DEFAULT_ROLE_OID, RULES)


@pytest.mark.parametrize("pem", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_nobody(pem: bytes) -> None:
    with pytest.raises(Unauthenticated):
        read_peer(pem, DEFAULT_ROLE_OID, RULES)


DAMAGES = st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 255)), min_size=1, max_size=4)


@given(DAMAGES)
@example([(12, 1)])
def test_a_damaged_certificate_is_who_it_says_or_nobody(damages: list[tuple[int, int]]) -> None:
    """Whatever its bytes are, which no CA has signed then: there is no other error."""
    der = bytearray(x509.load_pem_x509_certificate(WHOLE).public_bytes(Encoding.DER))
    for at, byte in damages:
        der[at % len(der)] = byte
    try:
        peer = read_peer(ssl.DER_cert_to_PEM_cert(bytes(der)).encode(), DEFAULT_ROLE_OID, RULES)
    except Unauthenticated:
        return
    assert peer.principal.uri.startswith("spiffe://")
    assert peer.principal.role in Role


def test_the_role_is_looked_for_under_the_oid_of_the_settings() -> None:
    other = "1.3.6.1.4.1.32473.9"
    assert read_peer(good(Recipe(role_oid=other)), other, RULES).principal.role is Role.WRITER
    with pytest.raises(Unauthenticated, match="no role"):
        read_peer(good(), other, RULES)


def test_the_role_cannot_be_under_the_oid_of_another_extension() -> None:
    with pytest.raises(Unauthenticated):
        read_peer(good(), "2.5.29.17", RULES)


def test_dates_are_looked_at_each_time() -> None:
    reader, pem = PeerReader(TLS, Revocations), good(Recipe(end=timedelta(seconds=2)))
    peer = reader.identify(context(pem))
    with pytest.raises(Unauthenticated, match="expired"):
        peer.check_dates(time.time() + 3)
    with pytest.raises(Unauthenticated, match="valid from"):
        peer.check_dates(time.time() - 3600)


@pytest.mark.parametrize(
    "auth",
    [
        {},
        context(good(), b"TLSv1.2"),
        {"x509_pem_cert": [good()]},
        {"ssl_tls_version": [b"TLSv1.3"]},
        {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [good(), good()]},
    ],
    ids=["nothing", "TLS 1.2", "no TLS", "no certificate", "two certificates"],
)
def test_without_tls_1_3_and_one_certificate_a_peer_is_nobody(auth: dict[str, list[bytes]]) -> None:
    with pytest.raises(Unauthenticated):
        PeerReader(TLS, Revocations).identify(auth)

"""What may stand in a certificate, and how it is said."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from jobworker.errors import InvalidField
from jobworker.identity import DEFAULT_ROLE_OID, Role
from jobworker_pki import authority, profiles
from support import certs

DAY = timedelta(days=1)


@pytest.mark.parametrize("name", ["localhost", "agent.example.org", "a-1.b", "A.example", "1.example", "x" * 63])
def test_host_names(name: str) -> None:
    assert profiles.host_name(name) == x509.DNSName(name)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "2001:db8::7"])
def test_addresses(address: str) -> None:
    assert profiles.host_name(address) == x509.IPAddress(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "a b", "a..b", ".a", "a.", "-a", "a-", "a_b", "*.example.org", "x" * 64, "a." * 127 + "aa"),
        *("127.0.0.256", "127.1", "1.2.3.4/8", "[::1]", "::1%eth0", "fe80::1%25eth0", "host:443", "a\0b", "a\n"),
        *("b\u00fccher.example", "https://example.org"),
    ],
)
def test_what_is_neither_name_nor_address(text: str) -> None:
    with pytest.raises(InvalidField) as caught:
        profiles.host_name(text)
    assert caught.value.field == "host"
    assert caught.value.example


def test_names_of_users_and_domains_are_checked() -> None:
    with pytest.raises(InvalidField) as caught:
        profiles.user("al ice", Role.READER, "example.org", DEFAULT_ROLE_OID, DAY)
    assert caught.value.field == "identity"
    with pytest.raises(InvalidField) as caught:
        profiles.user("alice", Role.READER, "Example Org", DEFAULT_ROLE_OID, DAY)
    assert caught.value.field == "identity"
    with pytest.raises(InvalidField) as caught:
        profiles.user("alice", Role.READER, "example.org", "2.5.29.17", DAY)
    assert caught.value.field == "role-oid"


def test_a_long_name_is_whole_in_the_san_and_short_in_the_subject() -> None:
    name = ".".join(["x" * 60] * 3)
    profile = profiles.server((name,), DAY)
    assert len(profile.subject().rfc4514_string()) == len("CN=") + 64
    (san,) = (e.value for e in profile.extensions if isinstance(e.value, x509.SubjectAlternativeName))
    assert san.get_values_for_type(x509.DNSName) == [name]


def test_the_same_name_stands_once() -> None:
    profile = profiles.server(("localhost", "::1", "localhost"), DAY)
    (san,) = (e.value for e in profile.extensions if isinstance(e.value, x509.SubjectAlternativeName))
    assert len(list(san)) == 2


def test_a_certificate_does_not_outlive_its_ca() -> None:
    stored = certs.dev_pki().pair("ca")
    assert isinstance(stored.private_key, rsa.RSAPrivateKey)
    ca = authority.Pair(stored.certificate, stored.private_key)
    profile = profiles.server(("localhost",), timedelta(days=36_500))
    certificate = authority.sign(ca, profile, ca.key.public_key(), datetime.now(UTC))
    assert certificate.not_valid_after_utc == ca.certificate.not_valid_after_utc

"""Roles and identities, as they stand in certificates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker import identity
from jobworker.errors import Unauthenticated
from jobworker.identity import Role


def test_a_writer_may_do_what_a_reader_may_and_not_the_other_way() -> None:
    assert Role.WRITER.includes(Role.READER)
    assert Role.WRITER.includes(Role.WRITER)
    assert Role.READER.includes(Role.READER)
    assert not Role.READER.includes(Role.WRITER)


@pytest.mark.parametrize("role", list(Role))
def test_role_comes_back_as_it_went(role: Role) -> None:
    assert identity.decode_role(identity.encode_role(role)) is role


def test_role_is_a_der_utf8string() -> None:
    assert identity.encode_role(Role.WRITER) == b"\x0c\x06WRITER"


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"WRITER",
        b"\x0c\x06WRITER\x00",  # something behind it
        b"\x0c\x81\x06WRITER",  # a length in the long form, which DER forbids here
        b"\x13\x06WRITER",  # a PrintableString
        b"\x0c\x05WRITER",  # a length that is too short
        b"\x0c\x07WRITER",
        b"\x0c\x06writer",
        b"\x0c\x05ADMIN",
        b"\x0c\x07READER\x00",
        b"\x0c\x06READER\x0c\x06WRITER",
    ],
)
def test_anything_else_is_no_role(der: bytes) -> None:
    with pytest.raises(Unauthenticated, match="READER, WRITER"):
        identity.decode_role(der)


@given(st.binary(max_size=64))
def test_no_bytes_decode_but_the_encodings(der: bytes) -> None:
    if der in {identity.encode_role(role) for role in Role}:
        return
    with pytest.raises(Unauthenticated):
        identity.decode_role(der)


def test_user_uri() -> None:
    uri = identity.user_uri("example.org", "alice")
    assert uri == "spiffe://example.org/user/alice"
    assert identity.check_user_uri(uri) == uri


@pytest.mark.parametrize(
    ("domain", "name"),
    [
        ("", "alice"),
        ("Example.org", "alice"),
        ("example.org:443", "alice"),
        ("-example.org", "alice"),
        ("d" * 254, "alice"),
        ("example.org", ""),
        ("example.org", "alice/../root"),
        ("example.org", ".."),
        ("example.org", "alice\n"),
        ("example.org", "al ice"),
        ("example.org", "\u00e4lice"),
        ("example.org", "a" * 65),
    ],
)
def test_what_cannot_be_an_identity(domain: str, name: str) -> None:
    with pytest.raises(ValueError, match="is not an identity"):
        identity.user_uri(domain, name)
    with pytest.raises(Unauthenticated):
        identity.check_user_uri(f"spiffe://{domain}/user/{name}")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "https://example.org/user/alice",
        "SPIFFE://example.org/user/alice",
        "spiffe://example.org/host/alice",
        "spiffe://example.org/user/alice/",
        "spiffe://example.org/user/alice?x=1",
        "spiffe://example.org/user/alice#x",
        "spiffe://root@example.org/user/alice",
        "spiffe://example.org/user/alice\n",
    ],
)
def test_other_uris_are_no_identity(uri: str) -> None:
    with pytest.raises(Unauthenticated, match="spiffe://TRUST-DOMAIN/user/NAME"):
        identity.check_user_uri(uri)


def test_a_refusal_keeps_a_hostile_uri_on_one_short_line() -> None:
    with pytest.raises(Unauthenticated) as caught:
        identity.check_user_uri("\n\x1b[2J" * 10_000)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("oid", [identity.DEFAULT_ROLE_OID, "1.3.6.1.4.1.99999.1", "2.999.1", f"1.3.{2**31 - 1}"])
def test_role_oids(oid: str) -> None:
    assert identity.check_role_oid(oid) == oid


@pytest.mark.parametrize(
    "oid",
    [
        *("", "1", "1.3", "1..3.6", "1.3.6.", ".1.3.6", "3.1.1", "1.40.1", "1.03.6", "1.3.x", "1.3.6\n"),
        *(f"1.3.{2**31}", "1.3" + ".1" * 40, "2.5.29.17"),
    ],
)
def test_what_cannot_be_a_role_oid(oid: str) -> None:
    with pytest.raises(ValueError, match=r"object identifier|belongs to X\.509"):
        identity.check_role_oid(oid)

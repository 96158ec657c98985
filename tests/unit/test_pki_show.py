"""`worker-pki show`: what it tells a person, and that nothing in a file can speak to the terminal."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from support import certs
from support.certs import Recipe, make
from support.pki import Pki, copied, host_profile, openssl, request, run

DAY = timedelta(days=1)
FILE = "hosts/a.example.org.pem"


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return copied(tmp_path)


def fields(text: str) -> list[tuple[str, str]]:
    pairs = (line.partition(":") for line in text.splitlines() if line)
    return [(name, value.strip()) for name, _, value in pairs]


def test_a_hosts_certificate_in_its_pki(pki: Pki) -> None:
    path = pki.leaf(FILE, host_profile("a.example.org", "10.0.0.7"), DAY)
    own, above = pki.ok("show", path).split("\n\n")
    told = fields(own)
    serial = f"{pki.certificate(FILE).serial_number:x}"
    issuers = [pki.certificate(f"{ca}.pem").subject.rfc4514_string() for ca in ("intermediate", "root")]
    assert [value for name, value in told if name == "name"] == ["DNS:a.example.org", "IP:10.0.0.7"]
    assert [value for name, value in told if name == "issuer"] == issuers
    assert dict(told)["subject"] == "CN=a.example.org"
    assert dict(told)["key"] == "RSA 4096, signed with sha256"
    assert dict(told)["valid"].endswith(" UTC, 28 d left")
    assert dict(told)["serial"] == serial
    assert dict(told)["agent"] == "serves with it as a.example.org, 10.0.0.7"
    assert "trusts what this CA has issued" in above
    pki.ok("revoke", path)
    assert "agent:     refuses it: the certificate is revoked" in pki.ok("show", path)


def test_a_revoked_intermediate_counts_for_those_below_it(pki: Pki) -> None:
    path = pki.leaf(FILE, host_profile("a.example.org"), DAY)
    pki.ok("revoke", pki.path("intermediate.pem"))
    assert "agent:     refuses it: the certificate's issuer is revoked" in pki.ok("show", path)
    assert "agent:     refuses what this CA has issued: it is revoked" in pki.ok(
        "show", pki.path("intermediate.pem")
    )


def test_a_revoked_certificate_stays_so_when_it_has_ended(pki: Pki) -> None:
    path = pki.leaf(FILE, host_profile("a.example.org"), 60 * DAY)
    assert "agent:     refuses it: the certificate expired" in pki.ok("show", path)
    pki.ok("revoke", path)
    assert "agent:     refuses it: the certificate is revoked" in pki.ok("show", path)


def test_a_leaf_without_its_intermediate_is_refused_as_agents_refuse_it(pki: Pki) -> None:
    path = Path(pki.leaf(FILE, host_profile("a.example.org"), DAY))
    path.write_bytes(pki.certificate(FILE).public_bytes(serialization.Encoding.PEM))
    issuers = [pki.certificate(f"{ca}.pem").subject.rfc4514_string() for ca in ("intermediate", "root")]
    for more in ((), ("--ca", pki.path("ca.pem"))):
        told = fields(pki.ok("show", str(path), *more))
        assert dict(told)["agent"].startswith("refuses it: the chain in this file does not lead to a CA")
        assert [value for name, value in told if name == "issuer"] == issuers


def test_a_users_certificate_anywhere() -> None:
    code, out, _ = run("show", certs.dev_pki().files("writer").cert)
    told = dict(fields(out))
    assert code == 0
    assert told["role"] == "WRITER"
    assert told["issuer"].endswith("(not in this file)")
    identity = "spiffe://dev.jobworker.internal/user/writer"
    assert (
        told["agent"] == f"accepts {identity} as WRITER, if it trusts the issuer and no revocation list names it"
    )


def test_the_cas_that_an_agent_trusts(pki: Pki) -> None:
    writer, ca = certs.dev_pki().files("writer").cert, certs.dev_pki().path("ca.pem")
    assert run("show", writer, "--ca", ca)[1].endswith("/user/writer as WRITER\n")
    assert (
        "refuses it: the chain in this file does not lead to a CA"
        in run("show", writer, "--ca", pki.path("ca.pem"))[1]
    )


def test_a_cas_certificate(pki: Pki) -> None:
    told = fields(pki.ok("show", pki.path("intermediate.pem")))
    assert ("ca", "of leaves only") in told
    assert [value for name, value in told if name == "permits"] == [
        "URI:example.org",
        "DNS:example.org",
    ]


def test_a_bundle_is_told_one_by_one(pki: Pki, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.write_bytes(Path(pki.path("intermediate.pem")).read_bytes() + Path(pki.path("root.pem")).read_bytes())
    code, out, _ = run("show", str(bundle))
    assert code == 0
    assert len(out.split("\n\n")) == 2
    assert "not in this file" not in out


def test_a_request(tmp_path: Path) -> None:
    told = fields(run("show", request(tmp_path / "csr", x509.DNSName("a.test"), key="rsa2048"))[1])
    assert ("asks for", "DNS:a.test") in told
    assert ("proof", "its sender holds the key") in told
    assert ("refused", "the key has 2048 bits, fewer than 4096") in told


def test_a_list(pki: Pki) -> None:
    path = pki.leaf(FILE, host_profile("a.example.org"), DAY)
    pki.ok("revoke", path, "--reason", "superseded")
    pki.ok("crl")
    told = dict(fields(pki.ok("show", pki.path("intermediate.crl"))))
    assert told["number"] == "1"
    assert told["signature"] == "holds"
    assert told["revoked"].startswith(f"{pki.certificate(FILE).serial_number:x} on ")
    assert told["revoked"].endswith(", superseded")


def test_a_list_that_openssl_makes_by_default_has_no_number(tmp_path: Path) -> None:
    ca, key = (certs.dev_pki().path(f"ca.{kind}") for kind in ("pem", "key"))
    made, config = tmp_path / "list.pem", tmp_path / "openssl.cnf"
    (tmp_path / "index.txt").touch()
    config.write_text(f"[ca]\ndefault_ca=own\n[own]\ndatabase={tmp_path}/index.txt\ndefault_md=sha256\n")
    lists = ("-gencrl", "-crldays", "7", "-out", str(made))
    openssl("ca", "-config", str(config), "-cert", ca, "-keyfile", key, *lists)
    code, out, err = run("show", str(made))
    assert (code, err) == (0, "")
    assert [name for name, _ in fields(out)] == ["list of", "valid"]


def test_nothing_of_a_key_is_shown(pki: Pki) -> None:
    for key in (pki.path("root.key"), certs.dev_pki().path("writer.key")):
        code, out, err = run("show", key)
        assert (code, out) == (1, "")
        assert "is a private key, which is not for showing" in err


@pytest.mark.parametrize(
    "content", [b"", b"\0\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_is_nothing_to_show(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    code, out, err = run("show", str(tmp_path / "file"))
    assert (code, out) == (1, "")
    assert err.startswith(f"worker-pki: {tmp_path}/file: holds ")


def test_control_characters_are_shown_as_such(tmp_path: Path) -> None:
    evil = make(Recipe("evil\x1b[31m\nagent:     accepts it")).save(tmp_path, "evil").cert
    code, out, _ = run("show", evil)
    assert code == 0
    assert "\x1b" not in out
    assert fields(out)[0] == ("subject", "CN=evil\\x1b[31m\\nagent:     accepts it")


def test_openssl_agrees_on_the_dates() -> None:
    writer = certs.dev_pki().files("writer").cert
    end = openssl("x509", "-in", writer, "-noout", "-enddate", "-dateopt", "iso_8601").strip()
    assert end.removeprefix("notAfter=").removesuffix("Z") in dict(fields(run("show", writer)[1]))["valid"]

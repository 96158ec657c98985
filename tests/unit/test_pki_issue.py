"""`worker-pki issue`: leaves for hosts and users, made once, recorded, and never silently replaced."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from jobworker.identity import DEFAULT_ROLE_OID
from support import pki as support
from support.certs import Pair, Recipe, make
from support.pki import Pki, copied, openssl, run, snapshot, worker_pki

HOST, USER = ("hosts", "build7.example.org.pem"), ("users", "alice.smith.pem")
ISSUE_HOST = ("issue", "host", "build7.example.org", "--san", "10.0.0.7")
ISSUE_USER = ("issue", "user", "alice.smith", "--role", "WRITER")


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """With a host and a user, made under an umask that hides nothing; not to be changed."""
    pki = copied(tmp_path_factory.mktemp("issued"))
    for command in (ISSUE_HOST, ISSUE_USER):
        secret = ("--passphrase-file", pki.passphrase_file)
        with worker_pki(*command, "--dir", pki.directory, *secret, umask=0) as process:
            out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        assert ": made; valid until " in out
    return pki


@pytest.fixture
def pki(issued: Pki, tmp_path: Path) -> Pki:
    shutil.copytree(issued.directory, tmp_path / "pki")
    shutil.copy(issued.passphrase_file, tmp_path / "pki.passphrase")
    return Pki(str(tmp_path / "pki"))


def records(pki: Pki) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(pki.path("index.jsonl")).read_text().splitlines()]


def test_modes(issued: Pki) -> None:
    for folder, file in (HOST, USER):
        assert stat.S_IMODE(os.stat(issued.path(folder)).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(issued.path(folder, file)).st_mode) == 0o644
        key = issued.path(folder, file.replace(".pem", ".key"))
        assert stat.S_IMODE(os.stat(key).st_mode) == 0o600


@pytest.mark.parametrize(
    ("file", "purpose", "other"), [(HOST, "sslserver", "sslclient"), (USER, "sslclient", "sslserver")]
)
def test_openssl_verifies_each_for_its_purpose_alone(
    issued: Pki, file: tuple[str, str], purpose: str, other: str
) -> None:
    # The file brings its own chain: the root alone is trusted.
    verify = (
        "verify",
        "-x509_strict",
        "-CAfile",
        issued.path("ca.pem"),
        "-untrusted",
        issued.path(*file),
        "-purpose",
    )
    assert openssl(*verify, purpose, issued.path(*file)).endswith("pem: OK\n")
    assert "unsuitable certificate purpose" in openssl(*verify, other, issued.path(*file))


def test_what_openssl_reads_in_a_users_certificate(issued: Pki) -> None:
    text = " ".join(openssl("x509", "-in", issued.path(*USER), "-noout", "-text").split())
    assert "Public-Key: (4096 bit)" in text
    assert "Basic Constraints: critical CA:FALSE" in text
    assert "Key Usage: critical Digital Signature X509v3" in text
    assert "Extended Key Usage: TLS Web Client Authentication X509v3" in text
    assert "Alternative Name: URI:spiffe://example.org/user/alice.smith " in text
    assert f"{DEFAULT_ROLE_OID}: ..WRITER" in text
    assert "Subject Key Identifier" in text
    assert "Authority Key Identifier" in text


def test_the_hosts_names_are_verified(issued: Pki) -> None:
    chain = ("-CAfile", issued.path("ca.pem"), "-untrusted", issued.path("intermediate.pem"), issued.path(*HOST))
    assert openssl("verify", "-verify_hostname", "build7.example.org", *chain).endswith("OK\n")
    assert openssl("verify", "-verify_ip", "10.0.0.7", *chain).endswith("OK\n")
    assert "hostname mismatch" in openssl("verify", "-verify_hostname", "build8.example.org", *chain)


def test_a_host_that_has_but_an_address_is_verified(pki: Pki) -> None:
    pki.ok("issue", "host", "10.0.0.7")
    chain = ("-CAfile", pki.path("ca.pem"), "-untrusted", pki.path("intermediate.pem"))
    assert openssl("verify", "-verify_ip", "10.0.0.7", *chain, pki.path("hosts", "10.0.0.7.pem")).endswith("OK\n")


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(uris=("spiffe://example.net/user/alice",)), "permitted subtree violation"),
        (Recipe(uris=(), hosts=("www.example.net",)), "permitted subtree violation"),
        (Recipe(uris=("spiffe://example.org/user/alice",), hosts=("a.example.org", "10.9.9.9")), ": OK"),
    ],
)
def test_the_intermediate_is_held_to_its_names(issued: Pki, tmp_path: Path, recipe: Recipe, expected: str) -> None:
    """Also by whoever signs with its key and without this tool."""
    with issued.opened() as home:
        ca = home.signer("intermediate", home.certificate("intermediate").not_valid_before_utc)
    files = make(recipe, Pair(ca.certificate, ca.key)).save(tmp_path, "rogue")
    chain = ("-CAfile", issued.path("ca.pem"), "-untrusted", issued.path("intermediate.pem"))
    assert expected in openssl("verify", *chain, files.cert)


def test_the_index_knows_each(issued: Pki) -> None:
    root, intermediate, host, user = records(issued)
    assert [each["action"] for each in (root, intermediate, host, user)] == ["init", "init", "issue", "issue"]
    assert host["names"] == ["DNS:build7.example.org", "IP:10.0.0.7"]
    assert user["names"] == ["URI:spiffe://example.org/user/alice.smith"]
    assert (user["role"], user["ca"], user["file"]) == ("WRITER", "intermediate", issued.path(*USER))
    assert user["serial"] == f"{issued.certificate(*USER).serial_number:x}"
    assert user["not_after"] == issued.certificate(*USER).not_valid_after_utc.isoformat()


def test_run_again_it_changes_nothing(pki: Pki) -> None:
    before = snapshot(pki.directory)
    for command in (ISSUE_HOST, ISSUE_USER):
        assert "nothing to do" in pki.ok(*command)
    assert snapshot(pki.directory) == before


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            ("issue", "user", "alice.smith", "--role", "READER"),
            "is a WRITER's, not a READER's; revoke it (worker-pki",
        ),
        (
            ("issue", "host", "build7.example.org"),
            "names DNS:build7.example.org, IP:10.0.0.7; have it bear others (worker-pki renew",
        ),
        ((*ISSUE_HOST, "--san", "b.example.org"), "IP:10.0.0.7; have it bear others (worker-pki renew"),
        (("issue", "host", "www.example.net"), "www.example.net is not in or below example.org"),
        (("issue", "host", "notexample.org"), "notexample.org is not in or below example.org"),
        (("issue", "host", "192.168.0.1"), "192.168.0.1 is in none of the networks 10.0.0.0/8"),
        (("issue", "user", "../alice", "--role", "READER"), "'../alice' cannot name a file"),
        (("issue", "user", "al ice", "--role", "READER"), "is not an identity"),
        (("issue", "user", "alice", "--role", "ADMIN"), "'ADMIN' is not one of 'READER', 'WRITER'"),
        ((*ISSUE_USER, "--key-bits", "2048"), "2048 is not in the range 4096<=x<=8192"),
    ],
)
def test_refusals(pki: Pki, command: tuple[str, ...], expected: str) -> None:
    assert expected in pki.refused(*command)


def test_what_is_said_to_help_another_role_helps(pki: Pki) -> None:
    reader = (*ISSUE_USER[:-1], "READER")
    said = pki.refused(*reader)
    assert f"revoke it (worker-pki revoke {pki.path(*USER)}) and issue again\n" in said
    assert "renew" not in said
    pki.ok("revoke", pki.path(*USER))
    assert ": made;" in pki.ok(*reader)
    assert records(pki)[-1]["role"] == "READER"


def test_a_key_that_is_elsewhere_is_not_made_anew(pki: Pki) -> None:
    os.unlink(pki.path("users", "alice.smith.key"))
    assert "alice.smith.key: is not beside alice.smith.pem" in pki.refused(*ISSUE_USER)


def test_what_an_earlier_intermediate_issued_is_revoked_by_its_serial_and_issued_again(pki: Pki) -> None:
    for suffix in ("pem", "key"):
        os.unlink(pki.path(f"intermediate.{suffix}"))
    code, _, err = run("init", pki.directory, *support.WANTED, "--passphrase-file", pki.passphrase_file)
    assert code == 0, err
    problem = pki.refused(*ISSUE_USER)
    (serial,) = re.findall(r"was not issued by this CA; revoke it \(worker-pki revoke (\w+)\) and issue", problem)
    pki.ok("revoke", serial)
    assert ": made;" in pki.ok(*ISSUE_USER)


def test_killed_between_key_and_certificate_it_is_made_anew(pki: Pki) -> None:
    os.unlink(pki.path(*USER))
    assert ": made;" in pki.ok(*ISSUE_USER)
    assert openssl("x509", "-in", pki.path(*USER), "-noout", "-pubkey") == openssl(
        "pkey", "-in", pki.path("users", "alice.smith.key"), "-pubout"
    )


def test_what_is_half_written_of_the_index_is_no_record(pki: Pki) -> None:
    with open(pki.path("index.jsonl"), "ab") as stream:
        stream.write(b'{"time": "2026-')
    pki.ok("crl")
    assert [each["action"] for each in records(pki)] == ["init", "init", "issue", "issue", "crl"]


def test_a_broken_index_stops_everything(pki: Pki) -> None:
    with open(pki.path("index.jsonl"), "ab") as stream:
        stream.write(b"{}\n")
    assert "index.jsonl: line 5 is not a record; restore the file from a backup" in pki.refused("crl")


def test_a_leaf_does_not_outlive_its_issuer(pki: Pki) -> None:
    out = pki.ok("issue", "user", "bob", "--role", "READER", "--days", "3650")
    end = pki.certificate("intermediate.pem").not_valid_after_utc
    assert pki.certificate("users", "bob.pem").not_valid_after_utc == end
    assert f"valid until {end:%Y-%m-%d}" in out


def test_without_the_intermediates_key(pki: Pki) -> None:
    os.unlink(pki.path("intermediate.key"))
    assert "intermediate.key: is not here" in pki.refused("issue", "user", "bob", "--role", "READER")


def test_nothing_secret_is_printed(pki: Pki) -> None:
    code, out, err = pki.run("issue", "user", "bob", "--role", "READER")
    assert code == 0
    assert "PRIVATE KEY" not in out + err
    assert support.PASSPHRASE.decode() not in out + err


@pytest.mark.parametrize(
    "command", ["init", "issue", "issue host", "issue user", "sign", "renew", "revoke", "crl", "show", "dev"]
)
def test_help_teaches_by_an_example(command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert "Example" in out
    assert re.search(rf"^ +worker-pki {command} \S", out, re.MULTILINE)
    assert "\\b" not in out


def test_default_lives_are_short(issued: Pki) -> None:
    def life(certificate: x509.Certificate) -> timedelta:
        return certificate.not_valid_after_utc - certificate.not_valid_before_utc - timedelta(minutes=5)

    assert life(issued.certificate(*HOST)) == timedelta(days=30)
    assert life(issued.certificate(*USER)) == timedelta(days=1)

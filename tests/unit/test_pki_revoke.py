"""`worker-pki revoke` and `crl`: what is revoked stays so, and openssl believes the lists."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from support import certs
from support.pki import Pki, copied, host_profile, openssl, snapshot, worker_pki

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
FILE = "hosts/a.example.org.pem"


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return copied(tmp_path)


@pytest.fixture
def host(pki: Pki) -> str:
    return pki.leaf(FILE, host_profile("a.example.org"), HOUR)


def crl(pki: Pki, ca: str = "intermediate") -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl(Path(pki.path(f"{ca}.crl")).read_bytes())


def number(made: x509.CertificateRevocationList) -> int:
    return made.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def verdict(pki: Pki, path: str) -> str:
    lists = ("-CRLfile", pki.path("intermediate.crl"), "-CRLfile", pki.path("root.crl"))
    chain = ("-CAfile", pki.path("ca.pem"), "-untrusted", pki.path("intermediate.pem"))
    return openssl("verify", "-x509_strict", "-crl_check_all", *lists, *chain, path)


def test_openssl_believes_the_list(pki: Pki, host: str) -> None:
    other = pki.leaf("hosts/b.example.org.pem", host_profile("b.example.org"), HOUR, "other4096")
    pki.ok("crl")
    pki.ok("crl", "--ca", "root")
    assert verdict(pki, host).endswith("OK\n")
    assert verdict(pki, other).endswith("OK\n")
    pki.ok("revoke", host, "--reason", "keyCompromise")
    assert pki.ok("crl").startswith(f"{pki.path('intermediate.crl')}: 1 revoked; the next is due by ")
    assert "certificate revoked" in verdict(pki, host)
    assert verdict(pki, other).endswith("OK\n")
    assert openssl(
        "crl", "-in", pki.path("intermediate.crl"), "-noout", "-verify", "-CAfile", pki.path("intermediate.pem")
    ).startswith("verify OK")
    text = openssl("crl", "-in", pki.path("intermediate.crl"), "-noout", "-text")
    assert "Version 2" in text
    assert "Key Compromise" in text
    assert "X509v3 Authority Key Identifier" in text


def test_numbers_increase_and_the_next_is_due_in_time(pki: Pki) -> None:
    for expected in (1, 2, 3):
        pki.ok("crl", "--days", "7")
        made = crl(pki)
        assert number(made) == expected
        assert made.next_update_utc == made.last_update_utc + 7 * DAY
        assert abs(made.last_update_utc - datetime.now(UTC)) < HOUR


def aged(made: x509.CertificateRevocationList, days: int) -> bytes:
    """The same list, as if it had been signed so many days ago; by another key, which is nothing to its dates."""
    assert made.next_update_utc
    builder = x509.CertificateRevocationListBuilder(
        issuer_name=made.issuer,
        last_update=made.last_update_utc - days * DAY,
        next_update=made.next_update_utc - days * DAY,
        extensions=list(made.extensions),
    )
    return builder.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(serialization.Encoding.PEM)


def test_a_list_that_will_do_is_kept_until_two_thirds_of_its_life(pki: Pki) -> None:
    path = Path(pki.path("intermediate.crl"))
    if_due = ("crl", "--days", "30", "--if-due")
    pki.ok(*if_due)
    made = crl(pki)
    # What the file system says of its age is nothing to it: a copy or a restored backup is as old as it is.
    os.utime(path, (0, 0))
    assert pki.ok(*if_due).startswith(f"{path}: not due; to be signed from ")
    path.write_bytes(aged(made, 19))
    assert "not due" in pki.ok(*if_due)
    path.write_bytes(aged(made, 21))
    assert "not due" not in pki.ok(*if_due)
    assert number(crl(pki)) == 2
    assert "not due" in pki.ok("crl", "--days", "365", "--if-due")


@pytest.mark.parametrize("what", ["a revocation", "no file", "no list", "an older one"])
def test_a_list_that_will_not_do_is_replaced(pki: Pki, host: str, what: str) -> None:
    path = Path(pki.path("intermediate.crl"))
    pki.ok("crl")
    older = path.read_bytes()
    pki.ok("crl")
    if what == "a revocation":
        pki.ok("revoke", host)
    elif what == "no file":
        path.unlink()
    else:
        path.write_bytes(older if what == "an older one" else b"no list")
    pki.ok("crl", "--if-due")
    assert number(crl(pki)) == 3
    assert "not due" in pki.ok("crl", "--if-due")


def test_two_at_once_take_turns(pki: Pki) -> None:
    command = ("crl", "--dir", pki.directory, "--passphrase-file", pki.passphrase_file)
    both = [worker_pki(*command) for _ in "12"]
    assert [process.communicate()[1] for process in both] == ["", ""]
    lines = Path(pki.path("index.jsonl")).read_text().splitlines()
    assert [json.loads(line).get("number") for line in lines] == [None, None, 1, 2]
    assert number(crl(pki)) == 2


@pytest.mark.parametrize("form", ["{:x}", "{:X}", "0x{:x}", "colons"])
def test_by_serial_number(pki: Pki, host: str, form: str) -> None:
    serial = pki.certificate(FILE).serial_number
    text = form.format(serial)
    if form == "colons":
        digits = f"{serial:040x}"
        text = ":".join(digits[at : at + 2] for at in range(0, 40, 2))
    assert f"{serial:x} (CN=a.example.org): revoked at" in (told := pki.ok("revoke", text))
    assert told.endswith(", unspecified, for the list of the intermediate\n")
    pki.ok("crl")
    assert crl(pki).get_revoked_certificate_by_serial_number(serial) is not None
    assert Path(host).exists()


def test_a_reason_is_told_and_an_unspecified_one_is_absent(pki: Pki, host: str) -> None:
    pki.ok("revoke", host)
    pki.ok("crl")
    (entry,) = crl(pki)
    assert list(entry.extensions) == []


def test_revoked_again_it_stays_as_it_was(pki: Pki, host: str) -> None:
    first = pki.ok("revoke", host, "--reason", "superseded")
    before = snapshot(pki.directory)
    assert pki.ok("revoke", host, "--reason", "keyCompromise") == first
    assert snapshot(pki.directory) == before


def test_what_a_renewed_certificate_replaced_goes_with_it(pki: Pki, host: str) -> None:
    old = pki.certificate(FILE).serial_number
    pki.ok("renew", host, "--force")
    new = pki.certificate(FILE).serial_number
    assert len(pki.ok("revoke", f"{old:x}").splitlines()) == 2
    pki.ok("crl")
    assert {entry.serial_number for entry in crl(pki)} == {old, new}


def test_one_that_the_index_has_lost_can_be_revoked_by_its_file(pki: Pki, host: str) -> None:
    lines = Path(pki.path("index.jsonl")).read_bytes().splitlines(keepends=True)
    Path(pki.path("index.jsonl")).write_bytes(b"".join(lines[:-1]))
    pki.ok("revoke", host)
    pki.ok("crl")
    assert len(crl(pki)) == 1


def test_an_expired_one_leaves_the_list_after_it_was_on_one(pki: Pki) -> None:
    pki.ok("crl")
    pki.ok("revoke", pki.leaf(FILE, host_profile("a.example.org", days=1), 2 * DAY))
    pki.ok("crl")
    assert len(crl(pki)) == 1
    pki.ok("crl")
    assert len(crl(pki)) == 0


def test_the_intermediate_is_on_the_roots_list(pki: Pki, host: str) -> None:
    code, _, err = pki.run("revoke", pki.path("intermediate.pem"), "--reason", "cACompromise")
    assert code == 0
    assert "--ca root" in err
    pki.ok("crl", "--ca", "root")
    pki.ok("crl")
    assert len(crl(pki)) == 0
    assert [entry.serial_number for entry in crl(pki, "root")] == [
        pki.certificate("intermediate.pem").serial_number
    ]
    assert "certificate revoked" in verdict(pki, host)


def test_refusals(pki: Pki, host: str) -> None:
    assert "no certificate with serial 1234 was issued here" in pki.refused("revoke", "1234")
    assert "'no such' is neither a file nor a serial number" in pki.refused("revoke", "no such")
    assert "was not issued by this CA" in pki.refused("revoke", certs.dev_pki().files("writer").cert)
    assert "is the root, which no list can revoke" in pki.refused("revoke", pki.path("root.pem"))
    serial = f"{pki.certificate('root.pem').serial_number:x}"
    assert "root.pem: is the root, which no list can revoke" in pki.refused("revoke", serial)
    assert "'certificateHold' is not one of" in pki.refused("revoke", host, "--reason", "certificateHold")
    assert "holds no certificate in PEM form" in pki.refused("revoke", pki.path("pki.json"))

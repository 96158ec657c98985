"""`worker-pki renew`: from a timer, in place, never more than the old certificate said."""

from __future__ import annotations

import os
import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from jobworker.errors import PkiProblem
from jobworker.identity import DEFAULT_ROLE_OID, Role
from jobworker_pki import home, keys, profiles, reading, renewal
from support import certs
from support.pki import WANTED, Pki, copied, host_profile, openssl, request, run, snapshot

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
A = ("hosts", "a.example.org.pem")


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return copied(tmp_path)


def host(pki: Pki, ago: timedelta, days: int = 30) -> str:
    return pki.leaf(os.path.join(*A), host_profile("a.example.org", "10.0.0.7", days=days), ago)


def names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_before_its_time_nothing_happens_and_no_passphrase_is_needed(pki: Pki) -> None:
    path = host(pki, 19 * DAY)
    before = snapshot(pki.directory)
    code, out, err = run("renew", path, "--dir", pki.directory)
    assert (code, err) == (0, "")
    assert f"{path}: not due; valid until " in out
    assert snapshot(pki.directory) == before


@pytest.mark.parametrize("ago", [20 * DAY + HOUR, 40 * DAY])
def test_after_two_thirds_it_is_renewed_even_if_late(pki: Pki, ago: timedelta) -> None:
    path = host(pki, ago)
    old = pki.certificate(*A)
    assert f"{path}: renewed; valid until " in pki.ok("renew", path)
    new = pki.certificate(*A)
    assert new.serial_number != old.serial_number
    assert new.public_key() == old.public_key()
    assert new.subject == old.subject
    assert names(new) == names(old)
    assert timedelta(days=30) - HOUR < new.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=30)
    chain = ("-CAfile", pki.path("ca.pem"), "-untrusted", path)
    assert openssl("verify", "-x509_strict", "-purpose", "sslserver", *chain, path).endswith("OK\n")
    assert "not due" in pki.ok("renew", path)


def test_a_user_keeps_name_and_role(pki: Pki) -> None:
    profile = profiles.user("alice.smith", Role.READER, "example.org", DEFAULT_ROLE_OID, DAY)
    path = pki.leaf("users/alice.smith.pem", profile, 17 * HOUR)
    old = pki.certificate("users", "alice.smith.pem")
    assert "renewed" in pki.ok("renew", path)
    new = pki.certificate("users", "alice.smith.pem")
    role = x509.ObjectIdentifier(DEFAULT_ROLE_OID)
    assert names(new) == names(old)
    assert new.extensions.get_extension_for_oid(role) == old.extensions.get_extension_for_oid(role)


def test_force_and_days(pki: Pki) -> None:
    path = host(pki, DAY)
    pki.ok("renew", path, "--force", "--days", "60")
    assert pki.certificate(*A).not_valid_after_utc - datetime.now(UTC) > 59 * DAY


def test_a_leaf_may_get_a_shorter_life(pki: Pki) -> None:
    path = host(pki, DAY)
    pki.ok("renew", path, "--force", "--days", "7")
    assert pki.certificate(*A).not_valid_after_utc - datetime.now(UTC) <= 7 * DAY


def test_other_names_are_given_at_once_and_once(pki: Pki) -> None:
    path = host(pki, DAY)
    old = pki.certificate(*A)
    call = ("renew", path, "--san", "b.example.org", "--san", "10.0.0.7")
    assert "renewed" in pki.ok(*call)
    new = pki.certificate(*A)
    assert (reading.hosts(new), new.public_key()) == (("b.example.org", "10.0.0.7"), old.public_key())
    assert "not due" in pki.ok(*call)
    # Without names it keeps those that it has.
    pki.ok("renew", path, "--force")
    assert names(pki.certificate(*A)) == names(new)


def test_other_names_need_no_longer_life(pki: Pki) -> None:
    path = host(pki, DAY, days=3650)
    pki.ok("renew", path, "--san", "b.example.org")
    assert reading.hosts(pki.certificate(*A)) == ("b.example.org",)


def test_names_are_a_hosts_and_this_pkis(pki: Pki) -> None:
    path = host(pki, DAY)
    before = snapshot(pki.directory)
    assert "elsewhere.net" in pki.refused("renew", path, "--san", "elsewhere.net")
    assert "intermediate.pem: is not a host's" in pki.refused("renew", pki.path("intermediate.pem"), "--san", "b")
    code, _, err = pki.run("renew", path, path, "--san", "b.example.org")
    assert (code, "--san gives names to one host" in err) == (2, True)
    assert snapshot(pki.directory) == before
    user = pki.leaf("users/a.pem", profiles.user("a", Role.READER, "example.org", DEFAULT_ROLE_OID, DAY), HOUR)
    assert "is not a host's, and so has no names of hosts; omit --san" in pki.refused("renew", user, "--san", "b")


def test_a_new_key_beside_it(pki: Pki) -> None:
    path = host(pki, DAY)
    old = pki.certificate(*A).public_key()
    pki.ok("renew", path, "--force", "--new-key")
    assert pki.certificate(*A).public_key() != old
    key = path.replace(".pem", ".key")
    assert openssl("x509", "-in", path, "-noout", "-pubkey") == openssl("pkey", "-in", key, "-pubout")
    assert os.stat(key).st_mode & 0o777 == 0o600


def test_a_ca_gets_no_new_key(pki: Pki) -> None:
    problem = pki.refused("renew", pki.path("intermediate.pem"), "--force", "--new-key")
    assert "intermediate.pem: is a CA, whose key stays" in problem


def test_without_a_name_for_it_there_is_no_new_key(pki: Pki) -> None:
    path = pki.leaf("hosts/agent.crt", host_profile("a.example.org"), DAY)
    problem = pki.refused("renew", path, "--force", "--new-key")
    assert "agent.crt: is not called NAME.pem, so it is unclear which file is its key; renew it without" in problem


def test_several_in_one_call(pki: Pki) -> None:
    first, second = host(pki, 25 * DAY), pki.leaf("hosts/b.pem", host_profile("b.example.org"), DAY)
    out = pki.ok("renew", first, second).splitlines()
    assert [line.split("; ")[0] for line in out] == [f"{first}: renewed", f"{second}: not due"]


def test_one_that_cannot_be_renewed_does_not_stop_the_others(pki: Pki) -> None:
    revoked = pki.leaf("hosts/a.pem", host_profile("a.example.org"), 25 * DAY, "other4096")
    good = pki.leaf("hosts/b.pem", host_profile("b.example.org"), 25 * DAY)
    pki.ok("revoke", revoked)
    code, out, err = pki.run("renew", revoked, good)
    assert code == 1
    assert out.startswith(f"{good}: renewed; ")
    assert f"{revoked}: is revoked" in err
    assert "1 of 2 certificates were not renewed" in err


@pytest.mark.parametrize("folder", [(), ("hosts",)])
def test_nor_does_one_that_is_not_there(pki: Pki, folder: tuple[str, ...]) -> None:
    missing, good = pki.path(*folder, "none.pem"), host(pki, 25 * DAY)
    code, out, err = pki.run("renew", missing, good)
    assert code == 1
    assert out.startswith(f"{good}: renewed; ")
    assert f"{missing}: cannot be used: No such file or directory" in err
    assert "1 of 2 certificates were not renewed" in err


def test_the_file_is_old_or_new_and_never_absent(pki: Pki) -> None:
    path = host(pki, DAY)
    before = os.stat(path).st_ino
    content, held = Path(path).read_bytes(), os.open(path, os.O_RDONLY)
    try:
        pki.ok("renew", path, "--force")
        assert os.stat(path).st_ino != before
        assert os.pread(held, 100_000, 0) == content
    finally:
        os.close(held)
    assert Path(path).read_bytes().count(b"BEGIN CERTIFICATE") == 2
    assert not [name for name in os.listdir(os.path.dirname(path)) if name.startswith(".")]


def test_refusals(pki: Pki, tmp_path: Path) -> None:
    stranger = certs.dev_pki().files("writer").cert
    copy = tmp_path / "writer.pem"
    copy.write_bytes(Path(stranger).read_bytes())
    assert "was not issued by this CA; renew it where it was issued" in pki.refused("renew", str(copy))
    assert "is the root" in pki.refused("renew", pki.path("root.pem"))
    assert "cannot be used: No such file" in pki.refused("renew", pki.path("hosts", "none.pem"))
    path = host(pki, 25 * DAY)
    pki.ok("revoke", path)
    assert "is revoked; remove it, or issue a new one, with a new key" in pki.refused("renew", path)


def test_the_intermediate_keeps_its_key_so_that_leaves_still_verify(pki: Pki) -> None:
    path = host(pki, DAY)
    old = pki.certificate("intermediate.pem")
    assert "intermediate.pem: renewed" in pki.ok("renew", pki.path("intermediate.pem"), "--force")
    new = pki.certificate("intermediate.pem")
    assert (new.subject, new.public_key()) == (old.subject, old.public_key())
    assert new.not_valid_after_utc > old.not_valid_after_utc
    chain = ("-CAfile", pki.path("ca.pem"), "-untrusted", pki.path("intermediate.pem"))
    assert openssl("verify", "-x509_strict", *chain, path).endswith("OK\n")
    assert "Name Constraints: critical" in openssl("x509", "-in", pki.path("intermediate.pem"), "-noout", "-text")


def test_days_are_the_intermediates_too(pki: Pki) -> None:
    path = pki.path("intermediate.pem")
    problem = pki.refused("renew", path, "--force", "--days", "100")
    assert "would not live longer, for its issuer (root) or --days ends it; give more --days" in problem
    for days in (("--days", "3000"), ()):
        pki.ok("renew", path, "--force", *days)
        left = pki.certificate("intermediate.pem").not_valid_after_utc - datetime.now(UTC)
        assert 2999 * DAY < left <= 3000 * DAY


def test_an_issuer_that_ends_as_soon_is_renewed_first(pki: Pki) -> None:
    path = host(pki, DAY, days=3650)
    problem = pki.refused("renew", path, "--force")
    assert "would not live longer" in problem
    assert f"renew that first: worker-pki renew {pki.path('intermediate.pem')}" in problem


@pytest.mark.parametrize(
    ("ca", "life", "fix"),
    [
        (home.INTERMEDIATE, home.INTERMEDIATE_LIFE, "renew it: worker-pki renew "),
        (home.ROOT, home.ROOT_LIFE, "make a new PKI: worker-pki init DIR"),
    ],
)
def test_a_ca_that_has_expired_signs_nothing(pki: Pki, ca: str, life: timedelta, fix: str) -> None:
    with pki.opened() as found, pytest.raises(PkiProblem, match=f"{ca}.pem: the CA has expired; {fix}"):
        found.signer(ca, datetime.now(UTC) + life)


def test_due_is_two_thirds_of_the_life(pki: Pki) -> None:
    host(pki, timedelta(0))
    certificate = pki.certificate(*A)
    assert certificate.not_valid_after_utc - renewal.due(certificate) == 10 * DAY


def test_a_key_that_was_revoked_gets_no_other_certificate(pki: Pki) -> None:
    ended = pki.leaf("hosts/old.pem", host_profile("old.example.org", days=1), 2 * DAY)
    revoked = pki.leaf("hosts/b.pem", host_profile("b.example.org"), 25 * DAY)
    # That one counts no more, so that it is not revoked with the other.
    pki.ok("revoke", revoked, "--reason", "keyCompromise")
    for path in (ended, revoked):
        assert "revoked" in pki.refused("renew", path)
    assert "its key has been revoked; revoke it too, and issue a new one" in pki.refused("renew", ended)


def test_a_disk_with_room_for_half_a_record_hands_out_nothing(pki: Pki) -> None:
    path = host(pki, 25 * DAY)
    index = Path(pki.path("index.jsonl"))
    # Larger than a certificate, for which there is room.
    index.write_bytes(index.read_bytes() + index.read_bytes().splitlines(keepends=True)[-1] * 40)
    before = index.read_bytes(), Path(path).read_bytes()
    assert len(before[0]) > 2 * len(before[1])
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[0]) + 40, old[1]))
    try:
        code, _, err = pki.run("renew", path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert code == 1
    assert "File too large" in err
    assert Path(path).read_bytes() == before[1]
    pki.ok("renew", path)
    assert len(index.read_bytes().splitlines()) == len(before[0].splitlines()) + 1


def test_a_renewal_that_was_cut_off_between_key_and_certificate_is_told_and_mended(pki: Pki) -> None:
    pki.ok("issue", "user", "alice", "--role", "READER")
    path, key = pki.path("users", "alice.pem"), Path(pki.path("users", "alice.key"))
    key.write_bytes(keys.pem(keys.new()))
    problem = pki.refused("renew", path, "--force")
    assert f"{key}: is not the key of alice.pem; worker-pki renew --new-key --force {path}" in problem
    pki.ok("renew", "--new-key", "--force", path)
    assert keys.load(str(key), key.read_bytes(), None).public_key() == pki.certificate(path).public_key()
    assert "not due" in pki.ok("renew", path)


def test_a_key_beside_a_certificate_whose_own_is_elsewhere_is_told_and_put_away(pki: Pki, tmp_path: Path) -> None:
    csr = request(tmp_path / "csr", x509.DNSName("a.example.org"))
    pki.ok("sign", csr, "--accept-names")
    path, key = pki.path(*A), Path(pki.path("hosts", "a.example.org.key"))
    key.touch(0o600)
    key.write_bytes(certs.dev_pki().pair("reader").key_pem)
    for _ in range(2):
        problem = pki.refused("renew", path, "--force")
        assert f"{key}: is not the key of a.example.org.pem, which was signed for a request; move it" in problem
        key = key.rename(tmp_path / "away")
        pki.ok("renew", path, "--force")
        # The renewed one is of the same key, and so of the same request.
        key = key.rename(pki.path("hosts", "a.example.org.key"))


def test_a_ca_that_was_revoked_signs_nothing_but_lists(pki: Pki) -> None:
    path = host(pki, 25 * DAY)
    ca = pki.path("intermediate.pem")
    pki.ok("revoke", ca, "--reason", "keyCompromise")
    for words in (("issue", "user", "bob", "--role", "READER"), ("renew", path)):
        assert f"{ca}: is revoked; remove it and its key, bring back root.key, and run" in pki.refused(*words)
    assert not os.path.exists(pki.path("users", "bob.pem"))
    pki.ok("crl")
    # As it says.
    os.unlink(ca)
    os.unlink(pki.path("intermediate.key"))
    assert run("init", pki.directory, *WANTED, "--passphrase-file", pki.passphrase_file)[0] == 0
    pki.ok("issue", "user", "bob", "--role", "READER")

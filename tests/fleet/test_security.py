"""Deployed agents as those see them who are not to be let in, from outside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from support import certs, gateway, tls
from support.access import METHODS, NO_TLS, NOBODY, READ, ROLE, outcome, word, writes
from support.fleet import PASSPHRASE, Fleet, Member

pytestmark = pytest.mark.timeout(3600)
CALL = next(method for method in METHODS if method.endswith("/Start"))


def files(fleet: Fleet, user: str) -> certs.Files:
    return certs.Files(*fleet.files(user))


def authority(fleet: Fleet) -> certs.Pair:
    """The CA that signs the fleet's certificates."""
    pki = Path(fleet.directory, "pki")
    key = serialization.load_pem_private_key((pki / "intermediate.key").read_bytes(), PASSPHRASE.encode())
    assert isinstance(key, certs.Key)
    return certs.Pair(x509.load_pem_x509_certificate((pki / "intermediate.pem").read_bytes()), key)


@pytest.mark.parametrize("role", ["READER", "WRITER"])
def test_each_call_by_each_role(fleet: Fleet, member: Member, role: str) -> None:
    user = f"{role.lower()}-{member.name}"
    fleet.issue(user, role)
    with gateway.channel(member.addr, files(fleet, user)) as channel:
        found = {method: word(outcome(channel, method)) for method in METHODS}
    assert found == {method: ROLE if role == "READER" and writes(method) else READ for method in METHODS}


def test_certificates_that_nobody_is_to_have(fleet: Fleet, member: Member, tmp_path: Path) -> None:
    ca, trusted = authority(fleet), fleet.files("ansible")[0]
    odd = certs.odd_clients(ca, "spiffe://fleet.test/user/alice")
    # By which one is let in, or the refusals would prove nothing.
    good = certs.make(certs.Recipe(uris=("spiffe://fleet.test/user/alice",)), ca)
    found = {}
    for name, pair in {"good": good, **odd}.items():
        own = replace(pair.save(tmp_path, name, chain=(ca,)), ca=trusted)
        with gateway.channel(member.addr, own) as channel:
            found[name] = word(outcome(channel, CALL))
    assert found.pop("good") == READ
    assert len(found) == len(odd)
    assert set(found.values()) == {NO_TLS, NOBODY}, found


def test_another_authority_s_certificate_none_at_all_and_no_tls(fleet: Fleet, member: Member) -> None:
    own = files(fleet, "ansible")
    theirs = replace(certs.dev_pki().files("writer"), ca=own.ca)
    without = gateway.credentials(own, certificate=False)
    with (
        gateway.channel(member.addr, theirs) as foreign,
        grpc.secure_channel(member.addr, without) as nameless,
        grpc.insecure_channel(member.addr) as plain,
    ):
        assert [word(outcome(channel, CALL)) for channel in (foreign, nameless, plain)] == [NO_TLS] * 3


def test_nothing_older_than_tls_1_3(fleet: Fleet, member: Member) -> None:
    own = files(fleet, "ansible")
    assert tls.negotiated(tls.s_client(member.addr, own, "-tls1_3")) == "TLSv1.3"
    for version in tls.OLD_VERSIONS:
        said = tls.s_client(member.addr, own, version, "-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0")
        assert tls.negotiated(said) is None
        assert "CONNECTED(" in said, "openssl has tried"


def test_a_reader_changes_nothing(fleet: Fleet, member: Member) -> None:
    fleet.issue(f"looker-{member.name}", "READER")
    job_id = member.cli("start", "--", "sleep", "600").strip()
    user = f"looker-{member.name}"
    for words in (("run", "--", "true"), ("stop", job_id), ("signal", job_id, "KILL"), ("drain",)):
        done = member.client(*words, user=user)
        assert done.returncode != 0
        assert "WRITER" in done.stderr, words
    assert member.client("query", job_id, user=user).returncode == 0
    assert member.asked("query", job_id)["state"] == "RUNNING"
    member.cli("stop", job_id)


def test_files_with_secrets_are_for_those_alone_who_need_them(member: Member) -> None:
    root = member.guest.root
    for path in ("/etc/jobworker/tls/server.key", "/etc/jobworker/agent.yaml"):
        file = root.file(path)
        assert (file.user, file.group, file.mode) == ("root", "jobworker", 0o640), path
    for path in ("/var/lib/jobworker/jobs", "/run/jobworker"):
        assert not root.file(path).mode & 0o022, path
    ordinary = member.guest.user
    for path in ("/etc/jobworker/tls/server.key", "/etc/jobworker/agent.yaml", "/var/lib/jobworker/audit.log"):
        assert ordinary.run(f"cat {path}").rc != 0, path

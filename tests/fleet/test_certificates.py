"""Certificates and revocation lists by playbook, while jobs are followed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from support.counting import UNTIL_TOLD, check_count, check_end, tell
from support.fleet import GATEWAY, PASSPHRASE, Fleet, rest_of

pytestmark = pytest.mark.timeout(3600)


def test_a_renewal_is_taken_without_a_restart_or_a_cut_stream(fleet: Fleet) -> None:
    followed = {}
    for member in fleet:
        job_id = member.cli("start", "--", "sh", "-c", UNTIL_TOLD).strip()
        followed[member] = job_id, member.follow(job_id)
    before = {m: (m.asked("info")["certificate_expires_at"], m.main_pid(GATEWAY)) for m in fleet}
    play = fleet.play("rotate_certs", pki_force=True)
    assert play.status == 0, play.tail()
    for member, (job_id, follower) in followed.items():
        after = member.asked("info")["certificate_expires_at"], member.main_pid(GATEWAY)
        assert after[0] > before[member][0]
        assert after[1] == before[member][1]
        tell(member)
        output, said = rest_of(follower)
        assert (follower.returncode, said) == (0, "")
        assert check_count(output) > 0
        check_end(member, job_id)


def test_a_fleet_that_has_an_authority_gets_no_other(fleet: Fleet, tmp_path: Path) -> None:
    elsewhere = tmp_path / "pki"
    for name in ("rotate_certs", "site"):
        play = fleet.play(name, pki_dir=str(elsewhere))
        assert play.status != 0
        assert "has no authority, and hosts have certificates of one" in play.output
    assert not elsewhere.exists()
    assert all(member.answers() for member in fleet)


def test_a_revoked_client_is_refused_and_its_streams_are_ended(fleet: Fleet) -> None:
    fleet.issue("mallory")
    followed = {}
    for member in fleet:
        job_id = member.cli("start", "--", "sh", "-c", UNTIL_TOLD).strip()
        for user in ("mallory", "ansible"):
            follower = followed[member, user] = member.follow(job_id, user)
            assert follower.stdout
            assert follower.stdout.readline() == "0\n"
    play = fleet.play("revoke", revoke_certificate="pki/users/mallory.pem", revoke_reason="keyCompromise")
    assert play.status == 0, play.tail()
    for member in fleet:
        _, said = rest_of(followed[member, "mallory"])
        assert (followed[member, "mallory"].returncode != 0, "revoked" in said) == (True, True), said
        refused = member.client("info", user="mallory")
        assert (refused.returncode != 0, "revoked" in refused.stderr) == (True, True), refused.stderr
        tell(member)
        output, said = rest_of(followed[member, "ansible"])
        assert (followed[member, "ansible"].returncode, said) == (0, "")
        assert check_count("0\n" + output) > 0


def test_a_list_of_the_roots_own_is_handed_out_as_well(fleet: Fleet) -> None:
    fleet.pki("crl", "--ca=root", "--days=30")
    play = fleet.play("rotate_certs")
    assert play.status == 0, play.tail()
    for member in fleet:
        lists = member.guest.root.check_output("grep -c 'BEGIN X509 CRL' /etc/jobworker/tls/lists.pem")
        assert int(lists) == 2
        assert member.asked("info")["stale_files"] == {}


def test_an_operator_whose_certificate_is_revoked_gets_another(fleet: Fleet) -> None:
    play = fleet.play("revoke", revoke_certificate="pki/users/ansible.pem", revoke_reason="keyCompromise")
    assert play.status == 0, play.tail()
    assert not any(member.answers() for member in fleet)
    play = fleet.play("rotate_certs")
    assert play.status == 0, play.tail()
    assert all(member.answers() for member in fleet)


def test_a_revoked_authority_is_on_the_list_of_the_root_or_the_play_fails(tmp_path: Path) -> None:
    # The controller for a host: what it is given nobody serves with.
    controller = Fleet([], "", str(tmp_path))
    controller.install_collection()
    here = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "pki_files": str(tmp_path / "tls"),
        "pki_group": "root",
        "pki_names": ["here"],
        "pki_trust_domain": "here.test",
        "pki_passphrase": PASSPHRASE,
    }
    Path(controller.inventory).write_text(yaml.safe_dump({"jobworker": {"hosts": {"here": here}}}))
    play = controller.play("rotate_certs")
    assert play.status == 0, play.tail()
    key, lists = tmp_path / "pki" / "root.key", tmp_path / "tls" / "lists.pem"
    key.rename(tmp_path / "root.key")
    before = lists.read_text()
    for root_is_here in (False, True):
        if root_is_here:
            (tmp_path / "root.key").rename(key)
        play = controller.play("revoke", revoke_certificate="pki/intermediate.pem", revoke_reason="cACompromise")
        assert (play.status == 0) is root_is_here, play.tail()
        assert ("bring root.key into" in play.output) is not root_is_here
        assert (lists.read_text() != before) is root_is_here
    assert lists.read_text().count("BEGIN X509 CRL") == 2

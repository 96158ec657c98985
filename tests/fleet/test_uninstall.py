"""Agents are removed, put back by a play that was killed on its way, and removed with all that they had."""

from __future__ import annotations

import os

import pytest

from support.fleet import Fleet

pytestmark = pytest.mark.timeout(3600)


def test_records_outlive_a_removal_and_a_play_that_was_killed(fleet: Fleet) -> None:
    jobs = {member: member.cli("start", "--", "echo", "kept").strip() for member in fleet}
    play = fleet.play("uninstall")
    assert play.status == 0, play.tail()
    assert not any(member.answers() for member in fleet)
    assert fleet.play("site", until="Put the units in place").status != 0
    play = fleet.play("site")
    assert play.status == 0, play.tail()
    for member, job_id in jobs.items():
        assert member.cli("stream", job_id) == "kept\n"


def test_a_purge_leaves_nothing(fleet: Fleet) -> None:
    for member in fleet:
        member.guest.root.check_output("systemctl set-property jobworker-jobs.service CPUWeight=200")
    play = fleet.play("uninstall", uninstall_purge=True)
    assert play.status == 0, play.tail()
    kept = r"\( -path /proc -o -path /opt/jobworker-tests -o -path /var/log \) -prune"
    for member in fleet:
        root = member.guest.root
        assert root.check_output(f"find / -xdev {kept} -o -name '*jobworker*' -print") == ""
        # File systems of their own. Of the lab itself a container sees cgroups.
        assert root.check_output("find /run -name '*jobworker*'") == ""
        assert root.check_output("find /sys/fs/cgroup -name 'jobworker-*.service*' -o -name 'job-*'") == ""
        assert root.run("pgrep '^jw-'").stdout == ""
        assert "jobworker" not in root.check_output("cat /etc/passwd /etc/group")
        assert root.run("nft list tables").stdout == ""
    assert os.listdir(os.path.join(fleet.prometheus, "targets")) == []
    assert os.listdir(os.path.join(fleet.prometheus, "rules")) == []

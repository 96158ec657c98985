"""One call of the client to the whole fleet, by Ansible's inventory."""

from __future__ import annotations

import json

import pytest

from support.fleet import KEEPER, Fleet

pytestmark = pytest.mark.timeout(3600)


def test_output_of_all_hosts_bears_their_names(fleet: Fleet) -> None:
    done = fleet.client("run", "--", "sh", "-c", "hostname; exit 0")
    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, sorted(f"{n}: {n}" for n in fleet.members))


def test_a_job_on_each_is_listed_and_stopped_by_its_label(fleet: Fleet) -> None:
    assert fleet.client("start", "--label", "deploy=7", "--", "sleep", "1000").returncode == 0
    listed = fleet.client("--format", "json", "list", "--label", "deploy=7", "--state", "running")
    jobs = [each for each in map(json.loads, listed.stdout.splitlines()) if each["type"] == "job"]
    assert {each["host"] for each in jobs} == set(fleet.members)
    assert fleet.client("stop", "--label", "deploy=7").returncode == 0
    assert fleet.client("list", "--label", "deploy=7", "--state", "running").stdout == ""


def test_a_host_without_an_agent_costs_its_own_line(fleet: Fleet) -> None:
    *others, gone = fleet
    gone.guest.root.check_output(f"systemctl stop jobworker-gateway.service {KEEPER}")
    try:
        done = fleet.client("run", "--", "echo", "fine")
    finally:
        gone.guest.root.check_output(f"systemctl start {KEEPER} jobworker-gateway.service")
    assert done.stdout.splitlines() == [f"{member.name}: fine" for member in others]
    assert (done.returncode, f"unreachable: {gone.name}" in done.stderr) == (3, True)


def test_hosts_are_drained_by_playbook_and_back(fleet: Fleet) -> None:
    for name, draining in (("drain", True), ("undrain", False)):
        play = fleet.play(name)
        assert play.status == 0, play.tail()
        assert {member.asked("info")["draining"] for member in fleet} == {draining}

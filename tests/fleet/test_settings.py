"""Settings, policy and limits by playbook: taken without a restart, or refused and explained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.counting import COUNT, COUNTED, UNTIL_TOLD, check_end, tell
from support.fleet import GATEWAY, KEEPER, Fleet

pytestmark = [pytest.mark.timeout(3600), pytest.mark.usefixtures("restored")]


@pytest.fixture(scope="module")
def restored(fleet: Fleet) -> Iterator[None]:
    """Other tests find the fleet as its inventory says."""
    yield
    assert fleet.play("agents").status == 0


def test_a_reload_takes_settings_and_keeps_exit_codes(fleet: Fleet) -> None:
    jobs = {member: member.cli("start", "--", "sh", "-c", COUNT).strip() for member in fleet}
    play = fleet.play("agents", agent_settings=fleet.settings | {"jobs": {"default_pids": 321}})
    assert play.status == 0, play.tail()
    for member, job_id in jobs.items():
        assert member.asked("info")["limits"]["pids"]["default"] == "321"
        assert member.cli("stream", job_id, "--follow") == COUNTED
        check_end(member, job_id)


def test_what_a_killed_play_has_written_is_put_into_force_by_the_next(fleet: Fleet) -> None:
    settings = fleet.settings | {"jobs": {"default_pids": 432}}
    assert fleet.play("agents", until="See what is to be put into force", agent_settings=settings).status != 0
    for member in fleet:
        assert "432" in member.guest.root.check_output("cat /etc/jobworker/agent.yaml")
        assert member.asked("info")["limits"]["pids"]["default"] != "432"
    play = fleet.play("agents", agent_settings=settings)
    assert play.status == 0, play.tail()
    for member in fleet:
        assert member.asked("info")["limits"]["pids"]["default"] == "432"
    assert fleet.play("agents", agent_settings=settings).changed == 0


def test_no_restart_costs_jobs_their_exit_codes(fleet: Fleet) -> None:
    # As on an older kernel.
    changed: dict[str, Any] = {
        "agent_settings": fleet.settings | {"isolation": {"writable": ["/srv"]}},
        "agent_tells_ends": False,
    }
    jobs = {member: member.cli("start", "--", "sh", "-c", UNTIL_TOLD).strip() for member in fleet}
    keepers = {member: member.main_pid(KEEPER) for member in fleet}
    play = fleet.play("agents", **changed)
    assert play.status != 0
    assert "jobs run of which the host" in play.output
    assert {member: member.main_pid(KEEPER) for member in fleet} == keepers
    for member in fleet:
        tell(member)
    play = fleet.play("agents", **changed, agent_drain=True)
    assert play.status == 0, play.tail()
    for member, job_id in jobs.items():
        assert member.main_pid(KEEPER) not in (0, keepers[member])
        assert member.asked("query", job_id)["exit_code"] == 5
        assert member.asked("info")["draining"] is False


def test_a_gateway_takes_settings_though_the_root_side_was_down(fleet: Fleet) -> None:
    gateways = {member: member.main_pid(GATEWAY) for member in fleet}
    for member in fleet:
        member.guest.root.check_output(f"systemctl stop {KEEPER}")
        assert member.main_pid(GATEWAY) == gateways[member]
    play = fleet.play("agents", agent_settings=fleet.settings | {"log_level": "info"})
    assert play.status == 0, play.tail()
    for member, gateway in gateways.items():
        assert member.main_pid(GATEWAY) not in (0, gateway)
        assert member.cli("run", "--", "echo", "fine") == "fine\n"


def test_hashes_of_passwords_are_not_said(fleet: Fleet) -> None:
    hashed = "$2b$04$" + "N" * 22 + "w" * 31
    metrics = fleet.settings["metrics"] | {"basic_auth_users": {"prometheus": hashed}}
    play = fleet.play("agents", "--diff", agent_settings=fleet.settings | {"metrics": metrics})
    assert play.status == 0, play.tail()
    for member in fleet:
        assert hashed in member.guest.root.check_output("cat /etc/jobworker/agent.yaml")
    assert hashed not in play.output
    # The settings without them are told beside those that there are.
    play = fleet.play("agents", "--check", "--diff")
    assert (play.status, hashed in play.output) == (0, False), play.tail()


def test_settings_that_are_wrong_are_not_put_in_place(fleet: Fleet) -> None:
    play = fleet.play("agents", agent_settings=fleet.settings | {"jobs": {"default_pids": "many"}})
    assert play.status != 0
    assert "jobs.default_pids" in play.output
    for member in fleet:
        assert "many" not in member.guest.root.check_output("cat /etc/jobworker/agent.yaml")
        assert member.answers()


def test_a_policy_is_put_in_place_and_taken_away(fleet: Fleet) -> None:
    here = {"name": "ansible", "allow": "all", "principals": ["spiffe://fleet.test/user/ansible"]}
    look = {"name": "look", "allow": ["GetAgentInfo"]}
    fleet.issue("ann")

    def put(*rules: object) -> str:
        play = fleet.play("agents", agent_policy={"version": 1, "rules": rules})
        assert play.status == 0, play.tail()
        return play.output

    put(here)
    for member in fleet:
        refused = member.client("info", user="ann")
        assert (refused.returncode != 0, "policy" in refused.stderr) == (True, True), refused.stderr
    put(here, look)
    for member in fleet:
        assert member.client("info", user="ann").returncode == 0
    wrong = {"name": "wrong", "allow": "Query"}
    play = fleet.play("agents", agent_policy={"version": 1, "rules": [here, wrong]})
    assert (play.status != 0, "rules[1].allow" in play.output) == (True, True)
    assert fleet.play("agents").status == 0
    for member in fleet:
        assert member.client("run", "--", "true", user="ann").returncode == 0


def test_limits_come_by_profile(fleet: Fleet) -> None:
    limits = {"version": 1, "default": "small", "profiles": {"small": {"memory": "32M"}, "big": {"memory": "64M"}}}
    play = fleet.play("agents", agent_limits=limits)
    assert play.status == 0, play.tail()
    for member in fleet:
        for words, memory in (((), "32M"), (("--profile", "big"), "64M")):
            job_id = member.cli("start", *words, "--", "sleep", "1000").strip()
            assert member.asked("query", job_id)["limits"]["memory"]["value"] == memory
            member.cli("update", job_id, "--memory", "48M")
            assert member.asked("query", job_id)["limits"]["memory"]["value"] == "48M"
            member.cli("stop", job_id, "--force")

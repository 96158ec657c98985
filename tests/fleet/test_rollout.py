"""Other versions come and go under fifty jobs on each host, which lose nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from jobworker.client.output import Chunk, End
from jobworker.jobs import JobSpec
from support.counting import UNTIL_TOLD, check_count, tell
from support.fleet import KEEPER, Fleet
from support.versions import WHEELHOUSE, make_version

pytestmark = pytest.mark.timeout(3600)
JOBS = 50


class Running:
    """Fifty jobs on each host that count, and what was when they were started."""

    def __init__(self, fleet: Fleet) -> None:
        self._jobs = {}
        self._keepers = {member: member.main_pid(KEEPER) for member in fleet}
        for member in fleet:
            with member.connect() as client:
                spec = JobSpec("/bin/sh", ("-c", UNTIL_TOLD.replace("sleep 1", "sleep 5")))
                self._jobs[member] = {job.id: job.pid for job in (client.start(spec) for _ in range(JOBS))}

    def check(self) -> None:
        """They run as before; told to end, they have lost neither a line nor an exit code."""
        for member, jobs in self._jobs.items():
            assert member.main_pid(KEEPER) == self._keepers[member]
            with member.connect() as client:
                assert {job_id: client.query(job_id).pid for job_id in jobs} == jobs
                tell(member)
                ended = client.wait(jobs, timeout=600)
                assert {job.exit_code for job in ended} == {5}
                for job_id in jobs:
                    *chunks, end = client.stream(job_id)
                    assert isinstance(end, End)
                    assert check_count(b"".join(c.data for c in chunks if isinstance(c, Chunk))) > 0


def versions(fleet: Fleet) -> set[str]:
    """Of all gateways and supervisors."""
    told = [member.asked("info") for member in fleet]
    return {agent[half] for agent in told for half in ("version", "supervisor_version")}


def make(fleet: Fleet, version: str, directory: Path, **broken: Any) -> str:
    """The archives of another version for all Pythons of the fleet; their directory."""
    for python in {member.guest.kind.python for member in fleet}:
        own = directory / python
        own.mkdir()
        made = make_version(version, python, own, **broken)
        shutil.copytree(made, directory / "wheelhouse", dirs_exist_ok=True)
    return str(directory / "wheelhouse")


def test_an_upgrade_and_the_way_back_lose_nothing(fleet: Fleet, tmp_path: Path) -> None:
    wheelhouse = make(fleet, "0.1.1", tmp_path)
    running = Running(fleet)
    play = fleet.play("site", agent_version="0.1.1", agent_wheelhouse=wheelhouse)
    assert (play.status != 0, "and agent_version is 0.1.1: have that" in play.output) == (True, True), play.tail()
    assert versions(fleet) == {"0.1.0"}
    play = fleet.play("upgrade", agent_version="0.1.1", agent_wheelhouse=wheelhouse)
    assert play.status == 0, play.tail()
    assert versions(fleet) == {"0.1.1"}
    play = fleet.play("rollback", rollback_version="0.1.0")
    assert play.status == 0, play.tail()
    assert versions(fleet) == {"0.1.0"}
    # As a play leaves it that was killed before the supervisor's turn: the halves refuse each other's protocol.
    for member in fleet:
        member.guest.root.check_output("ln -sfn 0.1.1 /opt/jobworker/current")
        member.guest.root.check_output("systemctl restart jobworker-gateway")
    assert not any(member.answers() for member in fleet)
    play = fleet.play("upgrade", agent_version="0.1.1", agent_wheelhouse=wheelhouse)
    assert play.status == 0, play.tail()
    assert versions(fleet) == {"0.1.1"}
    play = fleet.play("rollback", rollback_version="0.1.0")
    assert play.status == 0, play.tail()
    running.check()


def test_a_broken_version_is_taken_back_from_the_first_host_and_reaches_no_other(
    fleet: Fleet, tmp_path: Path
) -> None:
    # It is another one than it should be.
    wheelhouse = make(fleet, "0.1.2", tmp_path, says="0.0.9")
    running = Running(fleet)
    version: dict[str, Any] = {"agent_version": "0.1.2", "agent_wheelhouse": wheelhouse}
    # Killed before its gate; the next play knows nevertheless which version was there before.
    assert fleet.play("upgrade", **version, until="Ask the agent what it is").status != 0
    play = fleet.play("upgrade", **version, agent_gate_retries=5)
    assert play.status != 0
    assert 'is back at 0.1.0: it answered {"version":"0.0.9"' in play.output.replace("\\", "")
    assert versions(fleet) == {"0.1.0"}
    for member, here in zip(fleet, [True, *[False] * len(fleet.members)], strict=False):
        assert member.guest.root.check_output("readlink /opt/jobworker/current") == "0.1.0"
        assert member.guest.root.file("/opt/jobworker/0.1.2").exists is here
    running.check()


def test_a_version_that_runs_no_job_is_taken_back_though_a_play_was_killed(fleet: Fleet, tmp_path: Path) -> None:
    wheelhouse = make(fleet, "0.1.7", tmp_path, starts=False)
    running = Running(fleet)
    version: dict[str, Any] = {"agent_version": "0.1.7", "agent_wheelhouse": wheelhouse}
    # It answers, and says what it should: what is left to be seen is a job.
    assert fleet.play("upgrade", **version, until="Run a job").status != 0
    first = next(iter(fleet))
    assert first.asked("info")["version"] == "0.1.7"
    play = fleet.play("upgrade", **version)
    assert (play.status != 0, "and is back at 0.1.0: " in play.output) == (True, True), play.tail()
    assert versions(fleet) == {"0.1.0"}
    running.check()


def test_nothing_goes_on_behind_a_batch_of_which_a_host_was_lost(fleet: Fleet, tmp_path: Path) -> None:
    if len(fleet.members) == 1:
        pytest.skip("the first batch has one host")
    # All but the first host are a tenth, with one that nobody reaches.
    silent = [f"silent{number}" for number in range(9 * len(fleet.members))]
    inventory = tmp_path / "silent.json"
    nowhere = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    inventory.write_text(json.dumps({"jobworker": {"hosts": dict.fromkeys(silent, nowhere)}}))
    play = fleet.play("rollback", "-i", str(inventory), rollback_version="0.1.0")
    assert play.status != 0
    assert "silent0 could not be reached any more, half-way" in play.output
    assert "silent1" not in play.output
    assert versions(fleet) == {"0.1.0"}


def test_an_upgrade_of_drained_hosts_waits_for_jobs_and_takes_new_ones(fleet: Fleet, tmp_path: Path) -> None:
    wheelhouse = make(fleet, "0.1.4", tmp_path)
    jobs = {member: member.cli("start", "--", "sleep", "20").strip() for member in fleet}
    play = fleet.play("upgrade", agent_version="0.1.4", agent_wheelhouse=wheelhouse, agent_drain=True)
    assert play.status == 0, play.tail()
    assert versions(fleet) == {"0.1.4"}
    for member, job_id in jobs.items():
        assert member.asked("query", job_id)["exit_code"] == 0
        assert member.asked("info")["draining"] is False
    play = fleet.play("rollback", rollback_version="0.1.0")
    assert play.status == 0, play.tail()


def test_a_play_that_was_killed_leaves_no_host_drained_for_long(fleet: Fleet, tmp_path: Path) -> None:
    version: dict[str, Any] = {"agent_version": "0.1.6", "agent_wheelhouse": make(fleet, "0.1.6", tmp_path)}
    running = Running(fleet)
    first = next(iter(fleet))
    assert fleet.play("upgrade", **version, agent_drain=True, until="Wait for the jobs that there are").status != 0
    assert first.asked("info")["draining"]
    play = fleet.play("upgrade", **version)
    assert play.status == 0, play.tail()
    assert versions(fleet) == {"0.1.6"}
    assert not any(member.asked("info")["draining"] for member in fleet)
    play = fleet.play("rollback", rollback_version="0.1.0")
    assert play.status == 0, play.tail()
    running.check()


def test_a_drain_that_takes_too_long_leaves_jobs_and_takes_new_ones(fleet: Fleet, tmp_path: Path) -> None:
    wheelhouse = make(fleet, "0.1.5", tmp_path)
    running = Running(fleet)
    version: dict[str, Any] = {"agent_version": "0.1.5", "agent_wheelhouse": wheelhouse}
    play = fleet.play("upgrade", **version, agent_drain=True, agent_drain_timeout="5s")
    assert play.status != 0
    assert "jobs are active after agent_drain_timeout (5s)" in play.output
    assert versions(fleet) == {"0.1.0"}
    assert not any(member.asked("info")["draining"] for member in fleet)
    running.check()


def test_a_host_that_somebody_has_drained_stays_so(fleet: Fleet) -> None:
    assert fleet.client("drain").returncode == 0
    play = fleet.play("rollback", rollback_version="0.1.0")
    assert play.status == 0, play.tail()
    assert all(member.asked("info")["draining"] for member in fleet)
    assert fleet.client("undrain").returncode == 0


def test_a_wheel_that_was_changed_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    for python in {member.guest.kind.python for member in fleet}:
        name = f"jobworker-0.1.0-py{python}-x86_64.tar"
        shutil.copy(os.path.join(WHEELHOUSE, name), tmp_path)
        subprocess.run(["tar", "-xf", name, "--wildcards", "./click-*.whl"], cwd=tmp_path, check=True)
        (wheel,) = tmp_path.glob("click-*.whl")
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr("click/more.py", "evil = True")
        subprocess.run(["tar", "--append", "-f", name, f"./{wheel.name}"], cwd=tmp_path, check=True)
        # Beside the version that runs, which stays as it is; in place of one that is whole, if it is there by now.
        (tmp_path / name).rename(tmp_path / name.replace("0.1.0", "0.1.1"))
        wheel.unlink()
    play = fleet.play("upgrade", agent_version="0.1.1", agent_wheelhouse=str(tmp_path))
    assert play.status != 0
    assert "DO NOT MATCH THE HASHES" in play.output
    assert versions(fleet) == {"0.1.0"}
    play = fleet.play("rollback", rollback_version="0.1.1")
    assert (play.status != 0, "has no version 0.1.1 any more" in play.output) == (True, True), play.tail()


def test_another_archive_of_the_version_in_force_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    for python in {member.guest.kind.python for member in fleet}:
        name = f"jobworker-0.1.0-py{python}-x86_64.tar"
        shutil.copy(os.path.join(WHEELHOUSE, name), tmp_path)
        # Behind its end: the same files, in another archive.
        with open(tmp_path / name, "ab") as archive:
            archive.write(bytes(512))
    keepers = {member: member.main_pid(KEEPER) for member in fleet}
    for options in (["--check"], []):
        play = fleet.play("site", *options, agent_wheelhouse=str(tmp_path))
        assert (play.status != 0, play.changed) == (True, 0), play.tail()
        for member in fleet:
            assert f"{member.name}: {tmp_path}/jobworker-0.1.0-" in play.output
        assert "give it another version" in play.output
    for member, keeper in keepers.items():
        assert member.main_pid(KEEPER) == keeper
        assert member.cli("run", "--", "echo", "fine") == "fine\n"

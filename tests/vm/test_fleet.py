"""An agent that the collection has installed: under systemd, in its units, called from outside."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from support.fleet import PASSPHRASE, Fleet
from support.guest import Guest
from support.versions import WHEELHOUSE, make_version

pytestmark = pytest.mark.timeout(3600)

KEEPER, GATEWAY = "jobworker-keeper.service", "jobworker-gateway.service"
COUNT = "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit 5"
COUNTED = "".join(f"{i}\n" for i in range(200))


def wait_for(state: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for a state of the machine, of which nothing tells out here."""
    deadline = time.monotonic() + seconds
    while not state():
        assert time.monotonic() < deadline, "the machine does not come to be as it should"
        time.sleep(1)


def main_pid(guest: Guest, unit: str) -> int:
    return int(guest.unit(unit, "MainPID")["MainPID"])


def supervisor(guest: Guest) -> int:
    return int(guest.root.check_output("pgrep --exact jw-supervisor").split()[0])


def answers(fleet: Fleet) -> bool:
    return fleet.client("info").returncode == 0


def tells_ends(guest: Guest) -> bool:
    """True if the kernel tells how a process ended that is nobody's child (PIDFD_GET_INFO)."""
    major, minor = guest.user.check_output("uname -r").split(".")[:2]
    return (int(major), int(minor)) >= (6, 15)


def check_end(fleet: Fleet, job_id: str) -> None:
    """The end is exact, or said to be unknown."""
    wait_for(lambda: fleet.asked("query", job_id)["state"] == "ENDED")
    job = fleet.asked("query", job_id)
    if tells_ends(fleet.guest):
        assert (job["end_reason"], job["exit_code"]) == ("EXITED", 5)
    else:
        assert job["end_reason"] == "LOST"
        assert "6.15" in job["detail"]


def test_a_second_run_changes_nothing(fleet: Fleet) -> None:
    play = fleet.play("site", "--diff")
    assert (play.status, play.changed) == (0, 0), play.tail()


def test_a_look_finds_no_drift(fleet: Fleet) -> None:
    play = fleet.play("site", "--check", "--diff", "-vvv")
    assert (play.status, play.changed) == (0, 0), play.tail()


def test_nothing_secret_was_said(fleet: Fleet) -> None:
    assert "PLAY RECAP" in fleet.said
    assert PASSPHRASE not in fleet.said
    assert "PRIVATE KEY" not in fleet.said


@pytest.mark.parametrize(("unit", "most"), [(KEEPER, 44), (GATEWAY, 26)])
def test_units_are_exposed_as_little_as_promised(fleet: Fleet, unit: str, most: int) -> None:
    done = fleet.guest.root.run(f"systemd-analyze security --no-pager --threshold={most} {unit}")
    assert done.rc == 0, done.stdout


def test_the_root_side_has_read_no_yaml(fleet: Fleet) -> None:
    root, pid = fleet.guest.root, main_pid(fleet.guest, KEEPER)
    command = root.check_output(f"tr '\\0' ' ' < /proc/{pid}/cmdline")
    assert command.split()[1:4] == ["-I", "-S", "-E"]
    for each in (pid, supervisor(fleet.guest)):
        assert "yaml" not in root.check_output(f"cat /proc/{each}/maps")


def test_the_gateway_is_nobody_in_particular(fleet: Fleet) -> None:
    status = fleet.guest.root.check_output(f"cat /proc/{main_pid(fleet.guest, GATEWAY)}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in fields["Uid"].split()
    assert int(fields["CapEff"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


def test_limits_stand_in_the_kernel(fleet: Fleet) -> None:
    job_id = fleet.cli("start", "--memory", "64M", "--pids", "20", "--cpu", "50%", "--", "sleep", "1000").strip()
    job = fleet.asked("query", job_id)
    assert {limit["enforcement"] for limit in job["limits"].values()} == {"ENFORCED"}
    root = fleet.guest.root
    lines = root.check_output(f"cat /proc/{job['pid']}/cgroup").splitlines()
    paths = {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
    if fleet.guest.kind.mode == "v2":
        # Not below the keeper's own, where systemd could not start it again.
        assert "/jobworker-jobs.service/" in paths[""]
        files = [f"{paths['']}/{name}" for name in ("memory.max", "pids.max", "cpu.max")]
        values = [str(64 << 20), "20", "50000 100000"]
    else:
        files = [f"/memory{paths['memory']}/memory.limit_in_bytes", f"/pids{paths['pids']}/pids.max"]
        values = [str(64 << 20), "20"]
    assert (
        root.check_output(f"cd /sys/fs/cgroup && cat {' '.join('.' + name for name in files)}").splitlines()
        == values
    )
    fleet.cli("stop", job_id, "--force")


def test_jobs_have_nothing_of_the_unit(fleet: Fleet) -> None:
    script = (
        "ulimit -n; umask; cat /proc/self/oom_score_adj; head -c 1 /dev/zero | wc -c; ls /proc/self/fd | wc -l"
    )
    assert fleet.cli("run", "--", "sh", "-c", script).split() == ["1024", "0022", "0", "1", "4"]


@pytest.mark.parametrize("sandbox", ["standard", "strict"])
def test_the_unit_leaves_room_for_each_sandbox(fleet: Fleet, sandbox: str) -> None:
    assert fleet.cli("run", "--sandbox", sandbox, "--", "echo", "fine") == "fine\n"


@pytest.mark.parametrize("both", [False, True])
def test_killed_parts_cost_no_byte(fleet: Fleet, both: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    guest = fleet.guest
    jobs = [fleet.cli("start", "--", "sh", "-c", COUNT).strip() for _ in range(3)]
    wait_for(lambda: int(guest.unit(KEEPER, "NFileDescriptorStore")["NFileDescriptorStore"]) == 9)
    before = main_pid(guest, KEEPER)
    killed = f"{before} {supervisor(guest)}" if both else str(before)
    guest.root.check_output(f"kill -KILL {killed}")
    wait_for(lambda: main_pid(guest, KEEPER) not in (0, before))
    wait_for(lambda: answers(fleet))
    for job_id in jobs:
        assert fleet.cli("stream", job_id, "--follow") == COUNTED
        check_end(fleet, job_id)
    wait_for(lambda: guest.unit(KEEPER, "NFileDescriptorStore")["NFileDescriptorStore"] == "0")


def test_a_killed_supervisor_costs_nothing_at_all(fleet: Fleet) -> None:
    job_id = fleet.cli("start", "--", "sh", "-c", COUNT).strip()
    keeper = main_pid(fleet.guest, KEEPER)
    fleet.guest.root.check_output(f"kill -KILL {supervisor(fleet.guest)}")
    wait_for(lambda: answers(fleet))
    assert fleet.cli("stream", job_id, "--follow") == COUNTED
    wait_for(lambda: fleet.asked("query", job_id)["state"] == "ENDED")
    assert fleet.asked("query", job_id)["exit_code"] == 5
    assert main_pid(fleet.guest, KEEPER) == keeper


def test_a_restart_of_both_units_leaves_jobs_running(fleet: Fleet) -> None:
    # However slow the machine is, the job is there for as long as it takes.
    job_id = fleet.cli("start", "--", "sh", "-c", COUNT.replace("[ $i -lt 200 ]", "[ ! -e go ]")).strip()
    before = fleet.asked("query", job_id)
    fleet.guest.root.check_output(f"systemctl restart {KEEPER} {GATEWAY}")
    wait_for(lambda: answers(fleet))
    job = fleet.asked("query", job_id)
    assert (job["state"], job["pid"]) == ("RUNNING", before["pid"])
    fleet.guest.root.check_output(f"touch {before['workdir']}/go")
    lines = fleet.cli("stream", job_id, "--follow").split()
    assert lines == [str(number) for number in range(len(lines))]
    check_end(fleet, job_id)


def test_a_reload_takes_settings_and_keeps_exit_codes(fleet: Fleet) -> None:
    job_id = fleet.cli("start", "--", "sh", "-c", COUNT).strip()
    play = fleet.play("site", agent_settings={"log_level": "debug", "jobs": {"default_pids": 321}})
    assert play.status == 0, play.tail()
    assert fleet.asked("info")["limits"]["pids"]["default"] == "321"
    assert fleet.cli("stream", job_id, "--follow") == COUNTED
    wait_for(lambda: fleet.asked("query", job_id)["state"] == "ENDED")
    assert fleet.asked("query", job_id)["exit_code"] == 5


def test_settings_that_are_wrong_are_not_put_in_place(fleet: Fleet) -> None:
    play = fleet.play("site", agent_settings={"jobs": {"default_pids": "many"}})
    assert play.status != 0
    assert "jobs.default_pids" in play.output
    assert "many" not in fleet.guest.root.check_output("cat /etc/jobworker/agent.yaml")
    assert answers(fleet)


def test_a_policy_is_put_in_place_and_taken_away(fleet: Fleet) -> None:
    here = {"name": "ansible", "allow": "all", "principals": ["spiffe://fleet.test/user/ansible"]}
    fleet.issue("ann")
    play = fleet.play("site", agent_policy={"version": 1, "rules": [here]})
    assert play.status == 0, play.tail()
    refused = fleet.client("info", user="ann")
    assert (refused.returncode != 0, "policy" in refused.stderr) == (True, True), refused.stderr
    look = {"name": "look", "allow": ["GetAgentInfo"]}
    play = fleet.play("site", agent_policy={"version": 1, "rules": [here, look]})
    assert play.status == 0, play.tail()
    assert fleet.client("info", user="ann").returncode == 0
    play = fleet.play("site", agent_policy={"version": 1, "rules": [here, {"name": "wrong", "allow": "Query"}]})
    assert play.status != 0
    assert "rules[1].allow" in play.output
    assert fleet.client("info", user="ann").returncode == 0
    assert fleet.play("site").status == 0
    assert fleet.client("run", "--", "true", user="ann").returncode == 0


def test_limits_come_by_profile(fleet: Fleet) -> None:
    limits = {"version": 1, "default": "small", "profiles": {"small": {"memory": "32M"}, "big": {"memory": "64M"}}}
    play = fleet.play("site", agent_limits=limits)
    assert play.status == 0, play.tail()
    for words, memory in (((), "32M"), (("--profile", "big"), "64M")):
        job_id = fleet.cli("start", *words, "--", "sleep", "1000").strip()
        assert fleet.asked("query", job_id)["limits"]["memory"]["value"] == memory
        fleet.cli("update", job_id, "--memory", "48M")
        assert fleet.asked("query", job_id)["limits"]["memory"]["value"] == "48M"
        fleet.cli("stop", job_id, "--force")


def test_a_gateway_that_hangs_is_started_again(fleet: Fleet) -> None:
    guest, before = fleet.guest, main_pid(fleet.guest, GATEWAY)
    guest.root.check_output(f"kill -STOP {before}")
    wait_for(lambda: main_pid(guest, GATEWAY) not in (0, before))
    wait_for(lambda: answers(fleet))
    assert "watchdog" in guest.root.check_output(f"journalctl --no-pager --unit {GATEWAY} --lines 50").lower()


def test_a_stop_ends_jobs_and_leaves_no_process(fleet: Fleet) -> None:
    job_id = fleet.cli("start", "--", "sleep", "1000").strip()
    pid = fleet.asked("query", job_id)["pid"]
    fleet.guest.root.check_output(f"systemctl stop {KEEPER}")
    assert not fleet.guest.root.file(f"/proc/{pid}").exists
    fleet.guest.root.check_output(f"systemctl start {KEEPER}")
    wait_for(lambda: answers(fleet))
    assert fleet.asked("query", job_id)["end_reason"] != "LOST"


def test_another_kind_of_host_is_refused_with_a_sentence(fleet: Fleet) -> None:
    play = fleet.play("site", "--check", agent_cgroup_modes=["hybrid"])
    assert play.status != 0
    assert f"its cgroups are of the kind {fleet.guest.kind.mode}" in play.output


def test_an_upgrade_ends_no_job_and_can_be_taken_back(fleet: Fleet, tmp_path: Path) -> None:
    wheelhouse = make_version("0.1.1", fleet.guest.kind.python, tmp_path)
    job_id = fleet.cli("start", "--", "sh", "-c", COUNT.replace("200", "20000")).strip()
    pids = fleet.asked("query", job_id)["pid"], main_pid(fleet.guest, KEEPER)
    play = fleet.play("upgrade", agent_version="0.1.1", agent_wheelhouse=wheelhouse)
    assert play.status == 0, play.tail()
    assert fleet.asked("info")["version"] == "0.1.1"
    play = fleet.play("rollback", rollback_version="0.1.0")
    assert play.status == 0, play.tail()
    assert fleet.asked("info")["version"] == "0.1.0"
    job = fleet.asked("query", job_id)
    assert (job["state"], (job["pid"], main_pid(fleet.guest, KEEPER))) == ("RUNNING", pids)
    fleet.cli("stop", job_id, "--force")
    assert fleet.cli("stream", job_id).startswith("0\n1\n2\n3\n")


def test_a_version_that_does_not_pass_the_gate_is_taken_back(fleet: Fleet, tmp_path: Path) -> None:
    # It is another one than it should be.
    wheelhouse = make_version("0.1.2", fleet.guest.kind.python, tmp_path, says="0.0.9")
    play = fleet.play("upgrade", agent_version="0.1.2", agent_wheelhouse=wheelhouse, agent_gate_retries=5)
    assert play.status != 0
    assert "is back at 0.1.0" in play.output
    assert fleet.asked("info")["version"] == "0.1.0"
    assert fleet.guest.root.check_output("readlink /opt/jobworker/current") == "0.1.0"


def test_a_wheel_that_was_changed_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    name = f"jobworker-0.1.0-py{fleet.guest.kind.python}-x86_64.tar"
    shutil.copy(os.path.join(WHEELHOUSE, name), tmp_path)
    subprocess.run(["tar", "-xf", name, "--wildcards", "./click-*.whl"], cwd=tmp_path, check=True)
    (wheel,) = tmp_path.glob("click-*.whl")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("click/more.py", "evil = True")
    subprocess.run(["tar", "--append", "-f", name, f"./{wheel.name}"], cwd=tmp_path, check=True)
    # Beside the version that runs, which stays as it is.
    (tmp_path / name).rename(tmp_path / name.replace("0.1.0", "0.1.3"))
    play = fleet.play("upgrade", agent_version="0.1.3", agent_wheelhouse=str(tmp_path))
    assert play.status != 0
    assert "DO NOT MATCH THE HASHES" in play.output
    assert fleet.asked("info")["version"] == "0.1.0"


def test_certificates_are_renewed_and_taken_without_a_restart(fleet: Fleet) -> None:
    before = fleet.asked("info")["certificate_expires_at"], main_pid(fleet.guest, GATEWAY)
    play = fleet.play("rotate_certs", pki_force=True)
    assert play.status == 0, play.tail()
    after = fleet.asked("info")["certificate_expires_at"], main_pid(fleet.guest, GATEWAY)
    assert after[0] > before[0]
    assert after[1] == before[1]


def test_a_revoked_client_is_refused_at_once(fleet: Fleet) -> None:
    fleet.issue("mallory")
    assert fleet.client("info", user="mallory").returncode == 0
    play = fleet.play("revoke", revoke_certificate="pki/users/mallory.pem", revoke_reason="keyCompromise")
    assert play.status == 0, play.tail()
    refused = fleet.client("info", user="mallory")
    assert refused.returncode != 0
    assert "revoked" in refused.stderr
    assert answers(fleet)


def test_removal_leaves_nothing(fleet: Fleet) -> None:
    play = fleet.play("uninstall", uninstall_purge=True)
    assert play.status == 0, play.tail()
    kept = r"\( -path /proc -o -path /opt/jobworker-tests -o -path /var/log \) -prune"
    assert fleet.guest.root.check_output(f"find / -xdev {kept} -o -name '*jobworker*' -print") == ""
    assert fleet.guest.root.run("pgrep '^jw-'").stdout == ""

"""Parts of the agent die, hang, are restarted and stopped under systemd, and the whole host is."""

from __future__ import annotations

import contextlib

import pytest

from support.counting import COUNT, COUNTED, UNTIL_TOLD, check_count, check_end, tell
from support.fleet import GATEWAY, JOBS, KEEPER, Member, wait_for

pytestmark = pytest.mark.timeout(3600)


def stored(member: Member) -> int:
    """Descriptors that systemd keeps for the root side."""
    return int(member.guest.unit(KEEPER, "NFileDescriptorStore")["NFileDescriptorStore"])


@pytest.mark.parametrize("both", [False, True], ids=["keeper", "keeper and supervisor"])
def test_killed_parts_cost_no_byte(member: Member, both: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    guest = member.guest
    stored_before = stored(member)
    jobs = [member.cli("start", "--", "sh", "-c", UNTIL_TOLD).strip() for _ in range(3)]
    wait_for(lambda: stored(member) == stored_before + 9)
    before = member.main_pid(KEEPER)
    killed = f"{before} {member.supervisor()}" if both else str(before)
    guest.root.check_output(f"kill -KILL {killed}")
    wait_for(lambda: member.main_pid(KEEPER) not in (0, before))
    wait_for(member.answers)
    tell(member)
    for job_id in jobs:
        assert check_count(member.cli("stream", job_id, "--follow")) > 0
        check_end(member, job_id, keeper_died=True)
    wait_for(lambda: stored(member) == stored_before)


def test_a_killed_supervisor_costs_nothing_at_all(member: Member) -> None:
    job_id = member.cli("start", "--", "sh", "-c", COUNT).strip()
    keeper = member.main_pid(KEEPER)
    member.guest.root.check_output(f"kill -KILL {member.supervisor()}")
    wait_for(member.answers)
    assert member.cli("stream", job_id, "--follow") == COUNTED
    check_end(member, job_id)
    assert member.main_pid(KEEPER) == keeper


def test_a_restart_of_both_units_leaves_jobs_running(member: Member) -> None:
    job_id = member.cli("start", "--", "sh", "-c", UNTIL_TOLD).strip()
    before = member.asked("query", job_id)
    member.guest.root.check_output(f"systemctl restart {KEEPER} {GATEWAY}")
    wait_for(member.answers)
    job = member.asked("query", job_id)
    assert (job["state"], job["pid"]) == ("RUNNING", before["pid"])
    tell(member)
    assert check_count(member.cli("stream", job_id, "--follow")) > 0
    check_end(member, job_id, keeper_died=True)


def test_systemd_takes_no_job_out_of_its_limits(member: Member) -> None:
    guest = member.guest
    words = "--memory 64M --pids 20 --cpu 50% --cpu-weight 300 --cpuset 0 --io-read 10M --io-read-ops 1000"
    job_id = member.cli("start", *words.split(), "--", "sh", "-c", UNTIL_TOLD).strip()
    before = member.asked("query", job_id)
    where, limits = guest.cgroups_of(before["pid"]), guest.limits_of(before["pid"])
    try:
        for act in (
            "systemctl daemon-reload",
            f"systemctl set-property --runtime {JOBS} MemoryMax=80% CPUWeight=50",
            f"systemctl restart {KEEPER}",
            "systemctl daemon-reload",
        ):
            guest.root.check_output(act)
            wait_for(member.answers)
            job = member.asked("query", job_id)
            assert (job["state"], job["pid"], job["limits"]) == ("RUNNING", before["pid"], before["limits"]), act
            assert job["limits_restored"] == 0, act
            assert (guest.cgroups_of(job["pid"]), guest.limits_of(job["pid"])) == (where, limits), act
        if guest.kind.mode == "v2":
            # What is set for all of them is in force.
            above, unit, _ = where[""].partition(f"/{JOBS}/")
            assert guest.root.check_output(f"cat /sys/fs/cgroup{above}{unit}cpu.weight") == "50"
    finally:
        guest.root.check_output(f"rm -rf /run/systemd/system.control/{JOBS}.d && systemctl daemon-reload")
    tell(member)
    assert check_count(member.cli("stream", job_id, "--follow")) > 0
    check_end(member, job_id, keeper_died=True)


def test_a_gateway_that_hangs_is_started_again(member: Member) -> None:
    guest, before = member.guest, member.main_pid(GATEWAY)
    guest.root.check_output(f"kill -STOP {before}")
    wait_for(lambda: member.main_pid(GATEWAY) not in (0, before))
    wait_for(member.answers)
    assert "watchdog" in guest.root.check_output(f"journalctl --no-pager --unit {GATEWAY} --lines 50").lower()


def test_a_stop_ends_jobs_and_leaves_no_process(member: Member) -> None:
    job_id = member.cli("start", "--", "sleep", "1000").strip()
    pid = member.asked("query", job_id)["pid"]
    member.guest.root.check_output(f"systemctl stop {KEEPER}")
    assert not member.guest.root.file(f"/proc/{pid}").exists
    member.guest.root.check_output(f"systemctl start {KEEPER}")
    wait_for(member.answers)
    assert member.asked("query", job_id)["end_reason"] != "LOST"


def test_after_a_power_cut_jobs_are_lost_and_the_agent_is_back(member: Member) -> None:
    ended = member.cli("start", "--", "sh", "-c", "echo kept; exit 5").strip()
    running = member.cli("start", "--", "sh", "-c", "echo begun; exec sleep 1000").strip()
    check_end(member, ended)
    wait_for(lambda: member.cli("stream", running) == "begun\n")
    before = boot_id(member)
    # What was written two seconds ago is on the disk. A clean reboot would stop the units, and these their jobs.
    cut = "sync; systemctl reboot --force --force"
    member.guest.root.check_output(f"systemd-run --on-active=1 --timer-property=AccuracySec=100ms sh -c '{cut}'")
    wait_for(lambda: boot_id(member) not in ("", before), seconds=600)
    member.guest.assert_mode()
    wait_for(member.answers)
    job = member.asked("query", running)
    assert (job["state"], job["end_reason"]) == ("ENDED", "LOST")
    # The kernel of a container has not booted anew, as far as a unit with a /proc of its own can see.
    assert ("the agent was not there" if member.guest.kind.container else "boot") in job["detail"]
    assert member.cli("stream", running) == "begun\n"
    check_end(member, ended)
    assert member.cli("stream", ended) == "kept\n"
    assert member.cli("run", "--", "echo", "fine") == "fine\n"


def boot_id(member: Member) -> str:
    """Of the kernel that runs; empty while none can be asked."""
    with contextlib.suppress(RuntimeError):
        return str(member.guest.user.run("cat /proc/sys/kernel/random/boot_id").stdout).strip()
    return ""

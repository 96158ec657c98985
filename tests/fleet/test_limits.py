"""Limits of deployed agents, measured on all hosts at once."""

from __future__ import annotations

from typing import Any

import pytest

from support.counting import check_end
from support.fleet import Fleet, Member, wait_for

pytestmark = pytest.mark.timeout(3600)

SPIN = "while :; do :; done"
MIB = 1 << 20


def ended(member: Member, job_id: str) -> dict[str, Any]:
    wait_for(lambda: member.asked("query", job_id)["state"] == "ENDED")
    return member.asked("query", job_id)


def test_limits_stand_in_the_kernel(member: Member) -> None:
    words = ("--memory", "64M", "--pids", "20", "--cpu", "50%", "--cpu-weight", "300", "--cpuset", "0")
    job_id = member.cli("start", *words, "--", "sleep", "1000").strip()
    job = member.asked("query", job_id)
    assert {limit["enforcement"] for limit in job["limits"].values()} == {"ENFORCED"}
    if member.guest.kind.mode == "v2":
        # Not below the keeper's own, where systemd could not start it again.
        assert "/jobworker-jobs.service/" in member.guest.cgroups_of(job["pid"])[""]
        wanted = {
            "memory.max": str(64 * MIB),
            "pids.max": "20",
            "cpu.max": "50000 100000",
            "cpu.weight": "300",
            "cpuset.cpus": "0",
        }
    else:
        wanted = {
            "memory/memory.limit_in_bytes": str(64 * MIB),
            "pids/pids.max": "20",
            "cpu/cpu.cfs_quota_us": "50000",
            "cpu/cpu.shares": "3072",
        }
    assert wanted.items() <= member.guest.limits_of(job["pid"]).items()
    member.cli("stop", job_id, "--force")


def test_half_a_cpu_is_half_a_cpu(fleet: Fleet) -> None:
    words = ("start", "--cpu", "50%", "--timeout", "20s", "--", "sh", "-c", SPIN)
    jobs = {member: member.cli(*words).strip() for member in fleet}
    for member, job_id in jobs.items():
        job = ended(member, job_id)
        assert job["end_reason"] == "TIMED_OUT"
        assert job["usage"]["cpu_seconds"] == pytest.approx(10, abs=0.5)


def test_weights_divide_a_cpu(fleet: Fleet) -> None:
    # Both begin when both are there, and count until the first is told to end.
    script = "while [ ! -e go ]; do sleep 0.1; done; while :; do :; done"
    weights = ("100", "300")
    words = ("start", "--cpuset", "0", "--timeout", "40s")
    jobs = {
        member: [member.cli(*words, "--cpu-weight", w, "--", "sh", "-c", script).strip() for w in weights]
        for member in fleet
    }
    for member, both in jobs.items():
        directories = [member.asked("query", job_id)["workdir"] for job_id in both]
        member.guest.root.check_output("touch " + " ".join(f"{each}/go" for each in directories))
    for member, both in jobs.items():
        # What one had before the other, and waiting, are some hundredths of it.
        light, heavy = (ended(member, job_id)["usage"]["cpu_seconds"] for job_id in both)
        assert heavy / light == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize(
    "script",
    [
        "data = bytearray(256 << 20)",
        "open('/tmp/file', 'wb').write(bytes(256 << 20))",
        "open('/dev/shm/file', 'wb').write(bytes(256 << 20))",
    ],
    ids=["heap", "tmpfs", "shared memory"],
)
def test_who_takes_more_memory_than_allowed_dies_alone(fleet: Fleet, script: str) -> None:
    for member in fleet:
        parts = member.parts()
        neighbour = member.cli("start", "--", "sleep", "1000").strip()
        job_id = member.cli("start", "--memory", "48M", "--", "python3", "-c", script).strip()
        assert ended(member, job_id)["end_reason"] == "OOM_KILLED"
        assert member.asked("query", neighbour)["state"] == "RUNNING"
        assert member.parts() == parts
        member.cli("stop", neighbour, "--force")


@pytest.mark.parametrize(("name", "rate", "blocks"), [("io_write", "10M", "1M"), ("io_write_ops", "10", "4k")])
def test_a_disk_is_held_to_its_rate(member: Member, name: str, rate: str, blocks: str) -> None:
    script = f"dd if=/dev/zero of=file bs={blocks} count=50 oflag=direct 2>&1"
    option = f"--{name.replace('_', '-')}"
    job_id = member.cli("start", option, rate, "--", "sh", "-c", script).strip()
    job = ended(member, job_id)
    # v1's controllers do not hold buffered writes, and the agent says so.
    promised = "ENFORCED" if member.guest.kind.mode == "v2" else "BEST_EFFORT"
    assert job["limits"][name]["enforcement"] == promised
    seconds = float(member.cli("stream", job_id).split(" copied, ")[1].split()[0])
    assert seconds == pytest.approx(5, rel=0.1)


def test_a_fork_bomb_is_contained_and_swept(member: Member) -> None:
    bomb = "bomb() { bomb | bomb & }; bomb; exec sleep 1000"
    job_id = member.cli("start", "--pids", "100", "--", "sh", "-c", bomb).strip()
    other = member.cli("start", "--", "sh", "-c", "exit 5").strip()
    check_end(member, other)
    member.cli("stop", job_id, "--force")
    job = member.asked("query", job_id)
    assert job["state"] == "ENDED"
    assert member.guest.root.run(f"pgrep --uid {job['uid']}").stdout == ""
    assert member.guest.root.check_output(f"find /sys/fs/cgroup -name '*{job_id}*'") == ""

"""What the agent says it enforces, beside what the kernel has: the files of the job's cgroup, from outside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.guest import Guest, GuestAgent

pytestmark = pytest.mark.timeout(900)

LIMITS = ("--cpu", "50%", "--memory", "64M", "--pids", "20")
V2 = {"cpu.max": "50000 100000", "memory.max": str(64 << 20), "memory.swap.max": "0", "pids.max": "20"}
V1 = {
    "cpu/cpu.cfs_quota_us": "50000",
    "cpu/cpu.cfs_period_us": "100000",
    "memory/memory.limit_in_bytes": str(64 << 20),
    "pids/pids.max": "20",
}
IO_LIMITS = ("--io-read", "10M", "--io-write", "5M", "--io-read-ops", "1000", "--io-write-ops", "500")
IO_V2 = {"io.max": f"{{}} rbps={10 << 20} wbps={5 << 20} riops=1000 wiops=500"}
IO_V1 = {
    "blkio/blkio.throttle.read_bps_device": f"{{}} {10 << 20}",
    "blkio/blkio.throttle.write_bps_device": f"{{}} {5 << 20}",
    "blkio/blkio.throttle.read_iops_device": "{} 1000",
    "blkio/blkio.throttle.write_iops_device": "{} 500",
}


@pytest.fixture(scope="module")
def agent(guest: Guest) -> Iterator[GuestAgent]:
    with guest.agent("sudo") as running:
        yield running


def test_python_is_the_host_s_own(guest: Guest) -> None:
    assert guest.user.check_output("python3 -V").startswith(f"Python {guest.kind.python}.")


def test_the_agent_names_the_mode_and_what_it_enforces(guest: Guest, agent: GuestAgent) -> None:
    info = agent.asked("info")
    assert info["cgroup_mode"] == guest.kind.mode
    # v1's controllers do not hold buffered writes, and the agent says so.
    best = set() if guest.kind.mode == "v2" else {"io_write", "io_write_ops"}
    assert set(info["limits"]) > {"cpu", "memory", "pids", "io_read", *best}
    for name, limit in info["limits"].items():
        assert limit["enforcement"] == ("BEST_EFFORT" if name in best else "ENFORCED"), name
    assert info["user_per_job"] is True


def test_limits_stand_in_the_kernel(guest: Guest, agent: GuestAgent) -> None:
    job_id = agent.cli("start", *LIMITS, "--", "sleep", "1000").strip()
    job = agent.asked("query", job_id)
    assert (V2 if guest.kind.mode == "v2" else V1).items() <= guest.limits_of(job["pid"]).items()
    assert {name: limit["enforcement"] for name, limit in job["limits"].items()} == dict.fromkeys(
        ("cpu", "memory", "pids"), "ENFORCED"
    )
    agent.cli("stop", job_id, "--force")
    assert not guest.root.file(f"/proc/{job['pid']}").exists


def test_limits_of_the_disk_stand_in_the_kernel(guest: Guest, agent: GuestAgent) -> None:
    job_id = agent.cli("start", *IO_LIMITS, "--", "sleep", "1000").strip()
    job = agent.asked("query", job_id)
    disk = job["limits"]["io_read"]["detail"].removeprefix("on ")
    number = guest.root.check_output(f"cat /sys/class/block/{disk}/dev")
    wanted = {name: text.format(number) for name, text in (IO_V2 if guest.kind.mode == "v2" else IO_V1).items()}
    assert wanted.items() <= guest.limits_of(job["pid"]).items()
    agent.cli("stop", job_id, "--force")


def test_a_job_over_its_memory_dies_alone(agent: GuestAgent) -> None:
    parts = agent.parts()
    assert len(parts) == 3
    neighbour = agent.cli("start", "--", "sleep", "1000").strip()
    script = "data = bytearray(256 << 20); print('survived')"
    job_id = agent.cli("start", "--memory", "64M", "--", "python3", "-c", script).strip()
    assert agent.cli("stream", job_id, "--follow") == ""
    assert agent.asked("query", job_id)["end_reason"] == "OOM_KILLED"
    assert agent.asked("query", neighbour)["state"] == "RUNNING"
    assert agent.parts() == parts
    agent.cli("stop", neighbour, "--force")


def cgroups(guest: Guest) -> set[str]:
    """Every cgroup of an agent, in whatever hierarchy: also in a cgroup2 that the host has not mounted."""
    look = "mount -t cgroup2 none /mnt && find /sys/fs/cgroup /mnt -type d -path '*jobworker*'"
    return set(guest.root.check_output("unshare --mount sh -c %s", look).splitlines())


def test_a_clean_end_leaves_no_cgroup_and_no_mount(guest: Guest) -> None:
    before = cgroups(guest), mounts(guest)
    with guest.agent("sudo") as ending:
        ending.cli("start", *LIMITS, "--", "sleep", "1000")
        assert cgroups(guest) > before[0]
    assert (cgroups(guest), mounts(guest)) == before


def mounts(guest: Guest) -> str:
    return str(guest.root.file("/proc/1/mountinfo").content_string)

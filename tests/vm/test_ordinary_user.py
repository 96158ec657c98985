"""An agent that is not root: with a cgroup that systemd has delegated to it, and without."""

from __future__ import annotations

import pytest

from support.guest import Guest

pytestmark = pytest.mark.timeout(900)

DELEGATED = ("systemd-run", "--user", "--scope", "--quiet", "--collect", "-p", "Delegate=yes")
LIMITS = ("--cpu", "50%", "--memory", "64M", "--pids", "20")


@pytest.fixture
def v2_guest(guest: Guest) -> Guest:
    if guest.kind.mode != "v2":
        pytest.skip("v1 delegates nothing to ordinary users")
    return guest


def test_delegated_limits_are_enforced(v2_guest: Guest) -> None:
    with v2_guest.agent(*DELEGATED) as agent:
        info = agent.asked("info")
        assert info["cgroup_mode"] == "v2"
        told = {name: limit["enforcement"] for name, limit in info["limits"].items()}
        assert {told[name] for name in ("cpu", "cpu_weight", "memory", "pids")} == {"ENFORCED"}
        # systemd hands on no other controllers to users by itself.
        assert {told[name] for name in ("cpuset", "io_read", "io_write")} == {"UNSUPPORTED"}
        job_id = agent.cli(
            "start", "--memory", "64M", "--pids", "20", "--cpu", "50%", "--", "sleep", "1000"
        ).strip()
        pid = agent.asked("query", job_id)["pid"]
        path = "/sys/fs/cgroup" + v2_guest.root.file(f"/proc/{pid}/cgroup").content_string.strip().split(":")[2]
        values = v2_guest.root.check_output(f"cd {path} && cat memory.max pids.max cpu.max")
        assert values.splitlines() == [str(64 << 20), "20", "50000 100000"]
        assert "user@1000.service" in path
    v2_guest.root.run_expect([1], f"test -e {path}")


def test_without_delegation_it_says_what_cannot_be_limited(guest: Guest) -> None:
    with guest.agent() as agent:
        info = agent.asked("info")
        assert info["cgroup_mode"] == "none"
        assert {limit["enforcement"] for limit in info["limits"].values()} == {"UNSUPPORTED"}
        assert agent.cli("run", "--", "echo", "fine") == "fine"

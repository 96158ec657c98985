"""A host with cgroup v1 alone, made of a hybrid one: a mount namespace without the v2 hierarchy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jobworker.kernel.cgroup import detect

pytestmark = pytest.mark.root

TESTS = os.path.dirname(os.path.dirname(__file__))
INSIDE = """
import os, tempfile
from support.leftovers import cgroups
from support.root_side import root_side
from jobworker.jobs import EndReason
from jobworker.limits import Limits
from jobworker.kernel.cgroup import detect

assert detect.cgroup_mounts().v2 is None
with tempfile.TemporaryDirectory() as directory:
    os.chmod(directory, 0o755)
    with root_side(directory) as side:
        link = side.link(subscribe=True)
        assert link.welcome.host.cgroup_mode == "v1", link.welcome.host
        assert detect.cgroup_mounts().v2 is None, "what it has mounted is its own business"
        limits = Limits(cpu_millis=500, memory_bytes=32 << 20, pids=20)
        script = "trap '' TERM; (setsid sh -c 'sleep 1000; sleep 1000' &); echo up; sleep 1000; sleep 1000"
        record = link.start("/bin/sh", "-c", script, limits=limits)
        assert [limit.value for limit in record.limits] == ["50%", "32M", "20"]
        link.wait_output(record.job_id)
        os.kill(side.supervisor_pid(), 9)
        link.drain()
        link = side.reconnect(subscribe=True)
        assert link.welcome.host.cgroup_mode == "v1", "also when it has mounted it in an earlier life"
        assert link.stop(record.job_id, grace_ms=100).end_reason is EndReason.STOPPED
        record = link.start("/usr/bin/python3", "-c", "bytearray(200 << 20)", limits=limits)
        assert link.wait_ended(record.job_id).end_reason is EndReason.OOM_KILLED
        assert cgroups(record.job_id) == []
    assert detect.cgroup_mounts().v2 is None, "the agent's own mount is gone with it"
print("passed")
"""


@pytest.mark.skipif(not detect.cgroup_mounts().v1, reason="this host has no cgroup v1")
def test_an_agent_on_cgroup_v1_alone() -> None:
    unmount = f"umount {detect.cgroup_mounts().v2} && " if detect.cgroup_mounts().v2 else ""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{unmount}exec "$@"', "sh"]
    environment = os.environ | {"PYTHONPATH": TESTS}
    inside = subprocess.run(
        [*command, sys.executable, "-c", INSIDE], env=environment, capture_output=True, text=True, check=False
    )
    assert inside.stdout == "passed\n", inside.stderr

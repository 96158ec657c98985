"""Where clone3 is not to be had (an old kernel, a container's filter), jobs are forked and join by themselves."""

from __future__ import annotations

import signal

import pytest

from jobworker.errors import SandboxUnsupported, StartFailed
from jobworker.jobs import EndReason
from jobworker.limits import Limits
from support.leftovers import cgroups, processes_of
from support.root_side import fresh_root_side

pytestmark = pytest.mark.root

CLONE3 = 435


def test_jobs_without_clone3() -> None:
    with fresh_root_side(without_call=CLONE3) as side:
        link = side.link(subscribe=True)
        job = link.start("/bin/sleep", "1000")
        with open(f"/proc/{job.pid}/cgroup") as file:
            assert job.job_id in file.read()
        assert link.stop(job.job_id, force=True).end_reason is EndReason.STOPPED
        with pytest.raises(SandboxUnsupported, match="lacks pid-namespace: clone3: ENOSYS"):
            link.start("/bin/true", sandbox="strict")
        limits = Limits(memory_bytes=32 << 20, pids=20)
        big = link.start("/usr/bin/python3", "-c", "bytearray(200 << 20)", limits=limits)
        assert link.wait_ended(big.job_id).end_reason is EndReason.OOM_KILLED
        with pytest.raises(StartFailed):
            link.start("/no/such/file")
        tree = link.start("/bin/sh", "-c", "trap '' TERM; (setsid sleep 1000 &); echo up; sleep 1000; sleep 1000")
        link.wait_output(tree.job_id)
        stopped = link.stop(tree.job_id, grace_ms=100)
        assert (stopped.end_reason, stopped.signal) == (EndReason.STOPPED, signal.SIGKILL)
        assert processes_of(tree.uid) == []
        assert cgroups(tree.job_id) == []

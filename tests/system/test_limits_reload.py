"""The limits file changed over and over, every tenth time into what is none, while jobs are started by it."""

from __future__ import annotations

import os
import tempfile

import pytest

from jobworker.errors import InvalidField
from jobworker.jobs import EndReason
from jobworker.wire import messages
from support.limit_files import kernel_limits
from support.root_side import root_side

pytestmark = pytest.mark.root

# JOBWORKER_RELOADS=1000 takes some minutes.
CHANGES = int(os.environ.get("JOBWORKER_RELOADS", "60"))
BROKEN_EVERY = 10
_MEMORY = 64


def good(number: int) -> str:
    """One profile, whose number of processes tells which file it is from."""
    return f"version: 1\nprofiles: {{it: {{pids: {100 + number}, memory: {_MEMORY}M}}}}\n"


@pytest.mark.timeout(60 + CHANGES)
def test_many_changes_under_load() -> None:
    # Every change is a file: not to measure a slow disk.
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="jobworker-test-", dir=base) as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        with root_side(directory, limits=good(0)) as side:
            link = side.link(subscribe=True)
            standing = [link.start("/bin/sleep", "1000", profile="it") for _ in range(5)]
            in_force, ended = 0, 0
            for number in range(1, CHANGES + 1):
                broken = number % BROKEN_EVERY == 0
                side.write_limits(f"version: 1\nprofiles: {{it: {{pids: {number}\n" if broken else good(number))
                in_force = in_force if broken else number
                job = link.start("/bin/true", profile="it")
                assert {status.name: status.value for status in job.limits}["pids"] == str(100 + in_force)
                host = link.ask(messages.ReadLimits()).host
                assert bool(host.limits_problem) == broken, host.limits_problem
                ended += link.wait_ended(job.job_id).end_reason is EndReason.EXITED
                with pytest.raises(InvalidField):
                    link.start("/bin/true", profile="other")
            assert ended == CHANGES
            for job in standing:
                assert link.inspect(job.job_id).limits == job.limits
                assert kernel_limits(job) == {"pids": "100", "memory": f"{_MEMORY}M"}
                assert link.stop(job.job_id, force=True).end_reason is EndReason.STOPPED

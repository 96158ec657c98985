"""An agent in a cgroup that the service manager has delegated to it, as `systemd-run -p Delegate=yes` does.

In a mount namespace where what is written to the root's cgroup.subtree_control shows, and where the v2 hierarchy
of a hybrid host looks as if it had a controller.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobworker.kernel.cgroup import detect

pytestmark = pytest.mark.root

TESTS = os.path.dirname(os.path.dirname(__file__))
INSIDE = """
import os, tempfile
from pathlib import Path
from support.leftovers import cgroups
from support.root_side import root_side
from jobworker.jobs import EndReason, State
from jobworker.kernel.cgroup import detect, tree

top = Path(detect.cgroup_mounts().v2)
before = top / tree.own_cgroup().lstrip("/")
unit = top / f"jobworker-test-{os.getpid()}.service"
unit.mkdir()
os.setxattr(unit, "trusted.delegate", b"1")
(unit / "cgroup.procs").write_text("0")
try:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        with root_side(directory) as side:
            link = side.link(subscribe=True)
            assert link.welcome.host.cgroup_mode == "v2", link.welcome.host
            first = link.start("/bin/sleep", "1000")
            assert [path for path in cgroups(first.job_id) if not path.startswith(f"{unit}/")] == []
            # The next one starts in the leaf that this one is in.
            link = side.kill_supervisor(link)
            assert link.inspect(first.job_id).state is State.RUNNING
            second = link.start("/bin/sleep", "1000")
            assert len({os.path.dirname(cgroups(job.job_id)[0]) for job in (first, second)}) == 1
            for job in (first, second):
                assert link.stop(job.job_id).end_reason is EndReason.STOPPED
    # What is above is the service manager's.
    assert (top / "cgroup.subtree_control").read_text() == ""
finally:
    (before / "cgroup.procs").write_text("0")
    (unit / "agent").rmdir()
    unit.rmdir()
print("passed")
"""


def test_jobs_are_found_again(tmp_path: Path) -> None:
    found = detect.cgroup_mounts()
    if not found.v2:
        pytest.skip("this host has no cgroup v2")
    (tmp_path / "controllers").write_text("pids\n")
    (tmp_path / "handed_down").touch()
    as_v2 = f"mount --bind {tmp_path}/handed_down {found.v2}/cgroup.subtree_control && "
    if found.v1:
        as_v2 += f"mount --bind {tmp_path}/controllers {found.v2}/cgroup.controllers && "
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{as_v2}exec "$@"', "sh"]
    inside = subprocess.run(
        [*command, sys.executable, "-c", INSIDE],
        env=os.environ | {"PYTHONPATH": TESTS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert inside.stdout == "passed\n", inside.stderr

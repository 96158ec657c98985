"""Killing a cgroup where the kernel has no call for it (before Linux 5.14), without an agent that would help."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

import pytest

from jobworker.kernel.cgroup import detect, tree
from jobworker.kernel.cgroup.files import CgroupDir
from support.scripts import PYTHON
from support.waiting import until

pytestmark = pytest.mark.root

# Each of them is another process all the time, which is no longer there when it is found in a list.
_HOPPING = """
import os, sys
for _ in range(20):
    if os.fork() == 0:
        while os.fork() == 0:
            pass
        os._exit(0)
"""


@pytest.fixture
def group() -> Iterator[CgroupDir]:
    v2 = detect.cgroup_mounts().v2
    if not v2:
        pytest.skip("no v2 hierarchy is mounted here")
    name = f"jobworker-test-{os.getpid()}"
    with contextlib.closing(CgroupDir.open(v2)) as root:
        with contextlib.closing(root.make_child(name)) as made:
            yield made
        root.remove_child(name)


def test_none_outruns_it(group: CgroupDir) -> None:
    def join() -> None:
        group.write("cgroup.procs", "0")

    events = tree.open_events(group)
    try:
        subprocess.run([*PYTHON, _HOPPING], preexec_fn=join, check=True)
        assert tree.populated(events)
        tree._freeze_kill_thaw(group)
        until(lambda: tree.populated(events), False)
    finally:
        os.close(events)
        tree.kill(group)

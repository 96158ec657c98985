"""A process that not even SIGKILL ends: said, waited for, and no other job's affair."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker.jobs import EndReason, State
from support.hanging import Hanging, hanging
from support.leftovers import cgroups
from support.root_side import RootSide, root_side

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs fuse(4)"),
]


@pytest.fixture
def side(tmp_path: Path) -> Iterator[RootSide]:
    tmp_path.chmod(0o755)
    with root_side(str(tmp_path), kill_wait_ms=200) as running:
        yield running


@pytest.fixture
def dead(side: RootSide) -> Iterator[Hanging]:
    # Gone before the agent ends, which waits for its jobs.
    with hanging(os.path.join(os.path.dirname(side.state_dir), "dead")) as mounted:
        yield mounted


@pytest.mark.parametrize("sandbox", ["standard", "strict"])
def test_it_is_told_and_ends_when_it_can(side: RootSide, dead: Hanging, sandbox: str) -> None:
    link = side.link(subscribe=True)
    job_id = link.start("/bin/cat", f"{dead.path}/file", sandbox=sandbox).job_id
    dead.wait_until_asked()
    stopped = link.stop(job_id, force=True)
    assert (stopped.state, stopped.stuck) == (State.STOPPING, True)
    assert cgroups(job_id)
    # Nobody else has to wait for it.
    assert link.wait_ended(link.start("/bin/true").job_id).exit_code == 0
    dead.let_go()
    ended = link.wait_ended(job_id)
    assert (ended.end_reason, ended.stuck) == (EndReason.STOPPED, False)
    assert cgroups(job_id) == []


def test_the_next_supervisor_goes_on_with_it(side: RootSide, dead: Hanging) -> None:
    link = side.link(subscribe=True)
    job_id = link.start("/bin/cat", f"{dead.path}/file").job_id
    dead.wait_until_asked()
    assert link.stop(job_id, force=True).stuck
    os.kill(side.supervisor_pid(), signal.SIGKILL)
    again = side.reconnect(subscribe=True)
    assert again.stop(job_id, force=True).stuck
    dead.let_go()
    assert again.wait_ended(job_id).end_reason is EndReason.STOPPED

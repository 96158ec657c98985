"""The keeper through the deaths of supervisors that do what no good one does, at the worst of instants."""

from __future__ import annotations

import os
import select
from pathlib import Path

from support.bare_keeper import DEADLINE, JOB, bare_keeper


def wait_for_end(pid: int) -> None:
    """Wait until the process has ended, though nobody has reaped it."""
    pidfd = os.pidfd_open(pid)
    ready, _, _ = select.select([pidfd], [], [], DEADLINE)
    os.close(pidfd)
    assert ready


# It leaves the answer unread, and says the rest while the keeper can't read.
_UNREAD = f"""
if lives == 0:
    say(keeping.HAND_BACK)
    select.select([link], [], [])
    tell("asked")
    wait_for("go")
    say(keeping.HOLD_PIPES, {JOB!r}, os.pipe())
    sys.exit(1)
tell("held", [job_id for job_id, _ in take_back()])
"""


def test_what_a_supervisor_said_before_it_died_counts_whatever_it_had_not_read(tmp_path: Path) -> None:
    with bare_keeper(tmp_path, _UNREAD) as keeper:
        keeper.wait_for("asked")
        keeper.freeze()
        keeper.let("go")
        wait_for_end(*keeper.supervisors())
        keeper.thaw()
        assert keeper.process.wait(DEADLINE) == 0, keeper.log()
        assert keeper.wait_for("held") == f"['{JOB}']"

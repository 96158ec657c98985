"""No two jobs have one user id while files of one of them are there."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from jobworker.errors import CapExceeded
from jobworker.wire import messages
from support.link import CALLER
from support.root_side import fresh_root_side

pytestmark = pytest.mark.root


def mounts_below(directory: str) -> list[str]:
    """Where something is mounted (proc(5), mounts)."""
    places = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [place for place in places if place.startswith(f"{directory}/")]


def test_a_user_id_is_kept_over_a_restart_while_files_are_left() -> None:
    with fresh_root_side(uid_count=1) as side:
        link = side.link(subscribe=True)
        record = link.wait_ended(link.start("/bin/mkdir", "busy").job_id)
        # What something is mounted on can't be removed.
        busy = Path(side.state_dir, "jobs", record.job_id, "work", "busy")
        subprocess.run(["mount", "-t", "tmpfs", "none", str(busy)], check=True)
        try:
            link.ask(messages.DeleteJob(CALLER, record.job_id))
            for attempt in range(1, 4):
                side.wait_for(lambda: side.log().count("files of a removed job are left") == attempt)  # noqa: B023
                with pytest.raises(CapExceeded):
                    link.start("/bin/true")
                link = side.kill_supervisor(link)
        finally:
            # The helper that would remove it may be in it, or have moved it since.
            while places := mounts_below(side.state_dir):
                subprocess.run(["umount", "--lazy", places[0]], check=False)
        link = side.kill_supervisor(link)
        given = []

        def started() -> bool:
            # Once the helper has ended, and the supervisor has looked.
            with contextlib.suppress(CapExceeded):
                given.append(link.start("/bin/true").uid)
            return bool(given)

        side.wait_for(started)
        assert given == [record.uid]

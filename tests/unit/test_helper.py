"""Starting a helper: where the host has too few processes for it, and what it has of the supervisor."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from jobworker.supervisor import helper
from support.root_side import own_uids


def status_of(work: Callable[[], None]) -> int:
    """What a process exits with that does this: 0, or the number of the error that was raised."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            work()
            status = 0
        except OSError as error:
            status = error.errno or status
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.root
@pytest.mark.parametrize(("processes", "status"), [(1, errno.EAGAIN), (2, errno.EAGAIN), (3, 0)])
def test_either_fork_may_fail(processes: int, status: int) -> None:
    uid = own_uids()
    reading, writing = os.pipe()

    def start() -> None:
        # The limit is not root's, and counts all of a user's processes.
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
        os.setresuid(uid, uid, uid)
        helper.start("jw-test", (writing,), work)

    def work() -> None:
        os.write(0, b"begun")

    assert status_of(start) == status
    os.close(writing)
    with open(reading, "rb") as said:
        assert said.read() == (b"" if status else b"begun")


@pytest.mark.root
def test_it_has_no_part_in_how_the_supervisor_stands_with_the_oom_killer() -> None:
    reading, writing = os.pipe()
    score = Path("/proc/self/oom_score_adj")

    def start() -> None:
        # The other way round, which takes no capability.
        score.write_text("500")
        helper.start("jw-test", (writing,), tell)

    def tell() -> None:
        os.write(0, score.read_bytes())

    assert status_of(start) == 0
    os.close(writing)
    with open(reading, "rb") as said:
        assert said.read() == b"0\n"

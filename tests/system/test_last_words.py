"""What is left of the agent when it ends: nothing, and in time."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.link import DEADLINE
from support.root_side import RootSide, fresh_root_side
from support.waiting import until

pytestmark = pytest.mark.root


@pytest.fixture
def slow_disk() -> Iterator[tuple[RootSide, int]]:
    """An agent that is ending, but for the process that flushes its files, which has been stopped."""
    with fresh_root_side() as side:
        link = side.link(subscribe=True)
        link.wait_ended(link.start("/bin/true").job_id)
        supervisor, flusher = side.supervisor_pid(), side.flusher_pid()
        os.kill(flusher, signal.SIGSTOP)
        side.keeper.send_signal(signal.SIGTERM)
        until(Path(f"/proc/{supervisor}").exists, wanted=False)
        yield side, flusher
        with contextlib.suppress(ProcessLookupError):
            os.kill(flusher, signal.SIGCONT)


def test_the_keeper_is_the_last_to_end(slow_disk: tuple[RootSide, int]) -> None:
    side, flusher = slow_disk
    assert side.keeper.poll() is None
    os.kill(flusher, signal.SIGCONT)
    assert side.keeper.wait(DEADLINE) == 0
    assert not Path(f"/proc/{flusher}").exists()


def test_what_does_not_end_is_not_waited_for_for_ever(slow_disk: tuple[RootSide, int]) -> None:
    side, flusher = slow_disk
    assert side.keeper.wait(DEADLINE) == 0
    assert Path(f"/proc/{flusher}").exists()

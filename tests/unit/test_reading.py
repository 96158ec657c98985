"""Processes that read files or prove an upgrade, where the host has too few descriptors for them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from jobworker.errors import HostFault
from jobworker.kernel import pidfd
from jobworker.supervisor import limit_profiles, reading
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.upgrade import Proof
from support.scarce import MOST, children, open_files, room_for


def first_that_has_room(attempt: Callable[[], bool]) -> int:
    """With how many descriptors to spare it works; with fewer it leaves nothing."""
    for count in range(MOST):
        before = open_files(), children()
        with room_for(count):
            worked = attempt()
        if worked:
            return count
        assert (open_files(), children()) == before
    raise AssertionError("it never works")


def test_a_reader_that_cannot_be_started_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text("version: 1\nprofiles: {tiny: {pids: 7}}\n")
    started = []

    def attempt() -> bool:
        with suppress(HostFault):
            started.append(reading.Reading(limit_profiles.SOURCE, str(path)))
        return bool(started)

    # The file, and two pipes: the pidfd comes in the place of none of them.
    assert first_that_has_room(attempt) == 6
    os.waitid(os.P_PIDFD, started[0].pidfd, os.WEXITED | os.WNOWAIT)
    profiles, _ = started[0].result()
    assert [profile.name for profile in profiles.profiles] == ["tiny"]


@pytest.mark.usefixtures("one_life")
def test_a_proof_that_cannot_be_started_leaves_nothing() -> None:
    loop = Loop()

    def attempt() -> bool:
        said: list[str | None] = []
        Proof(loop, ["/bin/false"], said.append)
        return not said

    before = children()
    assert first_that_has_room(attempt) == 3
    (proof,) = children() - before
    os.waitpid(int(proof), 0)


def test_a_child_that_can_have_no_pidfd_is_gone() -> None:
    before, child = children(), os.fork()
    if child == 0:
        signal.alarm(60)
        signal.pause()
        os._exit(0)
    with room_for(0), pytest.raises(OSError, match="Too many open files"):
        pidfd.of_child(child)
    assert children() == before

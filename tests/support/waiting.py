"""Waiting for what nothing tells of."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

_SECONDS = 60.0
_DEADLINE = 60


def until(found: Callable[[], object], wanted: object, seconds: float = _SECONDS) -> None:
    """Look again and again until this is found.

    Raises:
        AssertionError: something else was found for too long.
    """
    deadline = time.monotonic() + seconds
    while (last := found()) != wanted:
        assert time.monotonic() < deadline, last
        time.sleep(0.002)


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended, which need not be a child of ours, nor have been reaped.

    Raises:
        TimeoutError: it does not.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([pidfd], [], [], _DEADLINE)[0]:
            raise TimeoutError(f"process {pid} does not end")
    finally:
        os.close(pidfd)

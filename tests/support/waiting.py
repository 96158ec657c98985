"""Waiting for what nothing tells of."""

from __future__ import annotations

import time
from collections.abc import Callable

_SECONDS = 6.0


def until(found: Callable[[], object], wanted: object, seconds: float = _SECONDS) -> None:
    """Look again and again until this is found.

    Raises:
        AssertionError: something else was found for too long.
    """
    deadline = time.monotonic() + seconds
    while (last := found()) != wanted:
        assert time.monotonic() < deadline, last
        time.sleep(0.002)

"""Trying again by a timer what the host refuses now and may grant later: processes, descriptors, its disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop

T = TypeVar("T")

_PAUSE = 1.0


def until_done(
    loop: Loop, log: Log, event: str, attempt: Callable[[], T], done: Callable[[T], None], *, told: bool = False
) -> None:
    """Call `attempt` until it raises no OSError, with a pause after each time, and `done` with what comes of it.

    The log says `event` of the first failure, and nothing of those that follow.
    """
    try:
        result = attempt()
    except OSError as error:
        if not told:
            log.error(event, error=str(error))
        loop.call_after(_PAUSE, lambda: until_done(loop, log, event, attempt, done, told=True))
    else:
        done(result)

"""Signals as the processes that a test starts shall find them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Processes started meanwhile get by default the signals that end a command.

    The tests themselves may have been started in the background of a script, or by nohup, where some are ignored.
    A handler, unlike that, does not outlive exec.
    """

    def end(number: int, frame: FrameType | None) -> None:
        signal.default_int_handler(number, frame)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Signals as the processes that a test starts shall find them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Processes started meanwhile get SIGINT by default, though the tests themselves may have been started in
    the background of a script, where it is ignored. A handler, unlike that, does not outlive exec.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

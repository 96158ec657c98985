"""What ends a wait of the main thread: signals, whichever thread the kernel gives them to, and other threads."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress


class Wakeups:
    """A pipe that says that something has happened.

    A wait for a lock, as of a queue, hears no signal that another thread has got. The pipe is never closed: who
    wakes may not have noticed yet that nobody waits any more.
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def wake(self) -> None:
        # If it is full, enough was told.
        with suppress(BlockingIOError):
            os.write(self._writing, b"\0")

    def wait(self, *others: int) -> tuple[bytes, list[int]]:
        """Wait until something has happened, or one of these descriptors is readable.

        Returns:
            The numbers of the signals that came, and the descriptors that are readable.
        """
        ready, _, _ = select.select([self._reading, *others], [], [])
        numbers = os.read(self._reading, 1024).replace(b"\0", b"") if self._reading in ready else b""
        return numbers, [fd for fd in ready if fd != self._reading]

    @contextmanager
    def of_signals(self, numbers: Collection[int] = ()) -> Iterator[None]:
        """Hear of signals: of those that have a handler, and of these, which do nothing else meanwhile."""
        before = {number: signal.signal(number, lambda _number, _frame: None) for number in numbers}
        old = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in before.items():
                signal.signal(number, handler)

"""Jobs of earlier lives that nothing is left of but what is on disk, read beside what runs.

There may be ten thousand of them, and seconds of work. Running jobs do not wait for that, nor does who asks for
one of these jobs by its id.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from jobworker.supervisor.loop import SLICE, Loop


class Backlog:
    """The jobs that have not been read yet.

    Args:
        take_in: reads one, by its name.
        whole: called when none is left.
    """

    def __init__(
        self, loop: Loop, names: Iterable[str], take_in: Callable[[str], None], whole: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._names = dict.fromkeys(names)
        self._take_in = take_in
        self._whole = whole
        loop.call_after(0, self._go_on)

    def take(self, name: str) -> None:
        """Read this one now, if it has not been."""
        if name in self._names:
            del self._names[name]
            self._take_in(name)

    def _go_on(self) -> None:
        end = time.monotonic() + SLICE
        while self._names and time.monotonic() < end:
            name, _ = self._names.popitem()
            self._take_in(name)
        if self._names:
            self._loop.call_after(0, self._go_on)
        else:
            self._whole()

"""Files of the administrator's that are in force: read anew when they have changed, the last good one until then.

Whoever needs one asks each time, which costs a stat; nothing polls. What was good last is kept as canonical JSON
in the state directory: a supervisor that comes back need not wait for it, and no crash brings back what was
before.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic

from jobworker import codec, file_stamp
from jobworker.errors import HostFault, InvalidField, JobWorkerError
from jobworker.file_stamp import Stamp
from jobworker.supervisor import reading
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import SLICE, Loop, Timer
from jobworker.supervisor.reading import R, Reading, Source, V
from jobworker.supervisor.store import Store

# Seconds from a reading that the host kept from coming to its end to the next.
_PAUSE = 1.0


class LastGood(Generic[V, R]):
    """Owns what a file holds.

    Args:
        path: empty for no file.
        unset: what holds without one.
        unknown: what holds if no file was ever good.
        patient: a file that can't be used keeps nobody from starting: there are jobs to be looked after.

    Raises:
        InvalidField: there is nothing that could be used.
        HostFault: likewise, since the file could not be read.

    Attributes:
        value: what is in force.
        ready: the same, ready for use.
        problem: why the file as it is now is not in force; empty if it is.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        store: Store,
        source: Source[V, R],
        path: str,
        *,
        unset: V,
        unknown: V,
        patient: bool,
    ) -> None:
        self._loop = loop
        self._log = log
        self._store = store
        self._source = source
        self._path = path
        self._changed: Callable[[], None] = lambda: None
        self._process: Reading[V, R] | None = None
        self._timer: Timer | None = None
        self._again: Timer | None = None
        self._waiting: list[Callable[[], None]] = []
        # What is to be called of those whose reading has ended.
        self._due: deque[Callable[[], None]] = deque()
        # How the file looked that was read last; None if the host has kept it from being read.
        self._seen: Stamp | None = ()
        self.problem = ""
        self._use(unset, source.ready(unset))
        if path:
            self._begin(unknown, patient=patient)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back after each change of `value` or `problem`."""
        self._changed = callback

    def _use(self, value: V, ready: R) -> None:
        self.value, self.ready = value, ready

    def _begin(self, unknown: V, *, patient: bool) -> None:
        seen, stored = file_stamp.of(self._path), self._stored()
        self._seen = seen
        last = stored if stored and stored.path == self._path else None
        kept = getattr(last, self._source.name) if last else unknown
        try:
            if last and last.stamp == seen:
                self._use(kept, self._source.ready(kept))
            else:
                self._took(*reading.read(self._source, self._path))
        except (InvalidField, HostFault) as error:
            if not last and not patient:
                raise
            self._use(kept, self._source.ready(kept))
            self._not_taken(error)

    def _stored(self) -> Any:
        name = self._source.name
        try:
            data = self._store.load_kept(name)
            stored = codec.loads(self._source.stored, data) if data else None
            if stored:
                self._source.ready(getattr(stored, name))
        except (JobWorkerError, OSError) as error:
            self._log.warning(f"the kept {name} cannot be read", error=str(error))
            return None
        return stored

    def read(self, done: Callable[[], None] = lambda: None, *, anyway: bool = False) -> None:
        """Read the file if it looks as if it had changed, or `anyway`; `done` is called after that."""
        if self._process is None:
            seen = file_stamp.of(self._path) if self._path else self._seen
            if seen == self._seen and not (anyway and self._path):
                done()
                return
            self._seen = seen
            self._start()
        if self._process is None:
            done()
        else:
            self._waiting.append(done)

    def _start(self) -> None:
        if self._again:
            self._again.cancel()
        try:
            process = Reading(self._source, self._path)
        except (InvalidField, HostFault) as error:
            self._not_taken(error)
            return
        self._process = process
        self._timer = self._loop.call_after(reading.PATIENCE, process.kill)
        for fd in process.pipes:
            self._loop.watch(fd, select.EPOLLIN, lambda fd=fd: self._on_output(process, fd))  # type: ignore[misc]
        self._loop.watch(process.pidfd, select.EPOLLIN, lambda: self._on_end(process))

    def _on_output(self, process: Reading[V, R], fd: int) -> None:
        if not process.pump(fd):
            self._loop.forget(fd)

    def _on_end(self, process: Reading[V, R]) -> None:
        for fd in (*process.pipes, process.pidfd):
            self._loop.forget(fd)
        if self._timer:
            self._timer.cancel()
        self._process = None
        try:
            self._took(*process.result())
        except (InvalidField, HostFault) as error:
            self._not_taken(error)
        if not self._due:
            self._loop.call_after(0, self._go_on)
        # Once more if it has changed meanwhile: they have asked for what it holds now. If the host has kept it
        # from being read, that might take as long again.
        waiting, self._waiting = self._waiting, []
        self._due += waiting if self._seen is None else [partial(self.read, done) for done in waiting]

    def _go_on(self) -> None:
        end = time.monotonic() + SLICE
        while self._due and time.monotonic() < end:
            self._due.popleft()()
        if self._due:
            self._loop.call_after(0, self._go_on)

    def _took(self, value: V, ready: R) -> None:
        name = self._source.name
        self._use(value, ready)
        self.problem = ""
        self._log.info(f"{name} read", path=self._path)
        try:
            self._store.save_kept(name, codec.dumps(self._source.stored(self._path, self._seen, value)))
        except OSError as error:
            # It is read again at the next start.
            self._log.warning(f"the {name} file is not kept", error=str(error))
        self._changed()

    def _not_taken(self, error: InvalidField | HostFault) -> None:
        if isinstance(error, InvalidField):
            self._failed(error.problem)
            return
        # The file may be good: whoever asks next has it read, and so has a timer.
        self._seen = None
        self._again = self._loop.call_after(_PAUSE, self.read)
        if self.problem != str(error):
            self._failed(str(error))

    def _failed(self, problem: str) -> None:
        self.problem = problem
        self._log.error(
            f"the {self._source.name} file cannot be used: what was good stays in force", problem=problem
        )
        self._changed()

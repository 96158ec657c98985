"""From a job's pipes into its log, and what is told of it when the disk does not take that."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Callable

from jobworker.jobs import Source
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.output import LONE_BYTES, ROUND_BYTES, OutputLog
from jobworker.supervisor.stand_in import Stream

# It is said once in that time that output is being lost, or is not any more.
_SAY_AGAIN = 1.0
_INT = struct.Struct("i")


class Pump:
    """Owns the reading ends of a job's pipes until each is at its end.

    Args:
        job_id: for the agent's log.
        output: where it goes; not owned.
        pipes: by descriptor, whose output comes there.
        grew: called after each piece.
        closed: called when a pipe is at its end.
        losing: called when output begins to be lost, when it does not any more, and when somebody has cut it.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        job_id: str,
        output: OutputLog,
        pipes: dict[int, Source],
        *,
        grew: Callable[[], None],
        closed: Callable[[], None],
        losing: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._log = log
        self._job_id = job_id
        self._output = output
        self._pipes = pipes
        self._grew = grew
        self._closed = closed
        self._losing = losing
        self._no_writer = False
        # What each pipe still has that is the job's, once that is known.
        self._left: dict[int, int] | None = None
        self._said_cut = 0
        self._said_failing = ""
        self._said_at = 0.0

    def begin(self) -> None:
        for pipe in self._pipes:
            self._watch(pipe)

    def _watch(self, pipe: int) -> None:
        self._loop.watch(pipe, select.EPOLLIN, lambda: self._on_output(pipe))

    @property
    def is_done(self) -> bool:
        """Nothing more will come."""
        return not self._pipes

    def no_writer_is_left(self) -> None:
        """As far as is known: one that a pipe was passed to elsewhere would keep it open for ever.

        So from now on a pipe is at its end once it is empty.
        """
        self._no_writer = True

    def drain(self) -> None:
        """Take what is in the pipes now, whether or not anything comes.

        What comes after that is not the job's: whoever it passed a pipe to could keep it from ending for ever.
        """
        if self._left is None:
            self._left = {pipe: _held(pipe) for pipe in self._pipes}
            for pipe in tuple(self._pipes):
                self._drain(pipe)

    def _drain(self, pipe: int) -> None:
        if pipe in self._pipes:
            self._loop.call_after(0, lambda: self._drain(pipe))
            self._on_output(pipe)

    def _on_output(self, pipe: int) -> None:
        try:
            more = self._move(pipe, LONE_BYTES if self._loop.ready == 1 else ROUND_BYTES)
        except BlockingIOError:
            more = not self._no_writer
        self._say_what_is_lost()
        if not more:
            self._close(pipe)
            self._closed()
        self._grew()

    def _move(self, pipe: int, limit: int) -> bool:
        """Move a piece; False when the pipe is at its end.

        Raises:
            BlockingIOError: it is empty.
        """
        source = self._pipes[pipe]
        if self._left is None:
            return self._output.pump(pipe, source, limit)
        if not self._left[pipe]:
            return False
        before = self._output.size
        more = self._output.pump(pipe, source, min(limit, self._left[pipe]))
        self._left[pipe] -= self._output.size - before
        return more and self._left[pipe] > 0

    def _close(self, pipe: int) -> None:
        self._loop.forget(pipe)
        os.close(pipe)
        del self._pipes[pipe]

    def _say_what_is_lost(self) -> None:
        if self._output.cut != self._said_cut:
            self._said_cut = self._output.cut
            self._log.error("output was cut off its log", job=self._job_id, lost_bytes=self._output.lost)
            self._losing()
        failing, now = self._output.failing, time.monotonic()
        if failing == self._said_failing or now - self._said_at < _SAY_AGAIN:
            return
        self._said_failing, self._said_at = failing, now
        if failing:
            self._log.error("output is being lost", job=self._job_id, error=failing)
        else:
            self._log.warning("output is written again", job=self._job_id, lost_bytes=self._output.lost)
        self._losing()

    def streams(self) -> list[Stream]:
        """What may still come, from where, to where."""
        return [(pipe, source, self._output) for pipe, source in self._pipes.items()]

    def pipe_of(self, source: Source) -> int | None:
        """The pipe's descriptor; None if it is at its end."""
        return next((pipe for pipe, of in self._pipes.items() if of is source), None)


def _held(pipe: int) -> int:
    """How many bytes are in a pipe."""
    held: int = _INT.unpack(fcntl.ioctl(pipe, termios.FIONREAD, bytes(_INT.size)))[0]
    return held

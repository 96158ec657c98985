"""A job's standard input that stays open: what is taken of it, and how it comes into the job's pipe.

What was taken lies in a file in memory until the pipe has room. The file's size is how much was taken, the file's
own position how much has gone into the pipe: splice(2) moves the bytes and the position in one step of the kernel.
That the end was taken is a seal on the file. The keeper holds copies of both descriptors, which share all that. So
whoever dies at any instant, the next supervisor finds what is true, and the job has not seen an end.

Root never waits for a job: what finds no room is not taken, and who wants to write it is told when to come back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass

from jobworker.errors import StdinEnded, StdinOffset, StdinTooLarge
from jobworker.kernel import syscalls
from jobworker.supervisor.loop import Loop

# Taken and not in the pipe yet; the pipe itself holds as much again.
WINDOW = 64 * 1024
NOT_OPEN = "it is not open; `stdin_open` at its start keeps a job's open"
JOB_ENDED = "the job has ended"
_END_TAKEN = "its end was written"
_JOB_CLOSED_IT = "the job has closed it"
_PAGE = os.sysconf("SC_PAGESIZE")
_INT = struct.Struct("i")


@dataclass(frozen=True, slots=True)
class Ends:
    """What an open standard input is written by: the pipe's write end, and the file of what waits for it."""

    pipe: int
    file: int

    def close(self) -> None:
        os.close(self.pipe)
        os.close(self.file)


def make(data: bytes) -> tuple[int, Ends]:
    """A pipe whose reading end is the job's, with the first bytes that are for it.

    Raises:
        OSError: it can't be had; nothing is left of it.
    """
    with contextlib.ExitStack() as undo:
        reading, pipe = os.pipe2(os.O_CLOEXEC)
        undo.callback(os.close, reading)
        undo.callback(os.close, pipe)
        file = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        undo.callback(os.close, file)
        os.set_blocking(pipe, False)
        os.pwrite(file, data, 0)
        undo.pop_all()
    return reading, Ends(pipe, file)


class Stdin:
    """Owns both ends while it is open.

    Args:
        room: called when who found no room may come back, and when there is no sense in that any more.
        ended: called before the job sees the end, and when it has closed its own end.

    Attributes:
        taken: bytes, from the first one on.
        why: nothing more is taken, once it is so.
    """

    def __init__(
        self,
        loop: Loop,
        job_id: str,
        ends: Ends,
        maximum: int,
        room: Callable[[], None],
        ended: Callable[[Stdin], None],
    ) -> None:
        self._loop = loop
        self._job_id = job_id
        self._ends: Ends | None = ends
        self._maximum = maximum
        self._room = room
        self._ended = ended
        self.why = _END_TAKEN
        self._sealed = bool(fcntl.fcntl(ends.file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_GROW)
        self._moved = os.lseek(ends.file, 0, os.SEEK_CUR)
        self._kept = self._moved - self._moved % _PAGE
        self.taken = os.fstat(ends.file).st_size

    @property
    def is_open(self) -> bool:
        """More can be taken, as far as is known."""
        return self._ends is not None and not self._sealed

    def begin(self) -> None:
        """Watch over the pipe, newly made or adopted."""
        self._move()

    def write(self, offset: int | None, data: bytes, *, end: bool) -> bool:
        """Take what there is room for; whether that is all of it.

        Args:
            offset: where the data begin; None for behind what was taken.
            data: any number of bytes.
            end: nothing comes behind the data.

        Raises:
            StdinOffset: they do not begin where the input has got to.
            StdinEnded: nothing more is taken.
            StdinTooLarge: not so much.
        """
        if offset is not None and offset != self.taken:
            raise StdinOffset(self._job_id, offset, self.taken)
        if not self.is_open:
            if end and not data and self._sealed:
                # Said again by who has not heard the answer.
                return True
            raise StdinEnded(self._job_id, self.taken, self.why)
        if self._maximum and self.taken + len(data) > self._maximum:
            raise StdinTooLarge(self._job_id, self._maximum, self.taken)
        while data and self._ends and self._waiting < WINDOW:
            written = os.pwrite(self._ends.file, data[: WINDOW - self._waiting], self.taken)
            self.taken, data = self.taken + written, data[written:]
            self._move()
        if end and not data and self._ends:
            fcntl.fcntl(self._ends.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
            self._sealed = True
            self._move()
        if data and self._ends is None:
            raise StdinEnded(self._job_id, self.taken, self.why)
        return not data

    @property
    def _waiting(self) -> int:
        return self.taken - self._moved

    def _move(self) -> None:
        """Have the job get what waits, as far as its pipe has room."""
        if self._ends is None:
            return
        try:
            while self._waiting:
                self._moved += os.splice(
                    self._ends.file, self._ends.pipe, self._waiting, flags=os.SPLICE_F_NONBLOCK
                )
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._end(_JOB_CLOSED_IT)
            return
        self._forget_what_was_read(self._ends)
        if self._sealed and not self._waiting:
            self._end(_END_TAKEN)
            return
        # Whatever is asked for, epoll(7) tells as well that the job has closed its end.
        self._loop.watch(self._ends.pipe, select.EPOLLOUT if self._waiting else 0, self._on_ready)

    def _on_ready(self) -> None:
        if self._ends and not self._waiting and _has_no_reader(self._ends.pipe):
            self._end(_JOB_CLOSED_IT)
            return
        waited = self._waiting
        self._move()
        if waited and not self._waiting:
            self._room()

    def _forget_what_was_read(self, ends: Ends) -> None:
        # What is in the pipe are the file's own pages.
        unread = _INT.unpack(fcntl.ioctl(ends.pipe, termios.FIONREAD, bytes(_INT.size)))[0]
        read = self._moved - unread
        read -= read % _PAGE
        # A host without memory to spare refuses even that: it is asked again with what comes next.
        with contextlib.suppress(OSError):
            if read > self._kept:
                syscalls.punch_hole(ends.file, self._kept, read - self._kept)
                self._kept = read

    def _end(self, why: str) -> None:
        ends, self._ends = self._ends, None
        if ends:
            self.why = why
            self._loop.forget(ends.pipe)
            self._ended(self)
            ends.close()
            self._room()

    def job_ended(self) -> None:
        """Nobody is left to read it."""
        self._end(JOB_ENDED)

    def descriptors(self) -> tuple[int, ...]:
        """What a keeper has to hold of it."""
        return (self._ends.pipe, self._ends.file) if self._ends else ()


def _has_no_reader(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return bool(poll.poll(0))

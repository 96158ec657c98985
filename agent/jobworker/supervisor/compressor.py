"""Compressing closed segments beside all else, in a process of its own that gives way to others.

The helper is told a job and compresses one segment of it, the oldest, so that jobs take turns. What is to be done
stands on the disk: of a helper or an agent that dies nothing has to be remembered.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections.abc import Callable

from jobworker.kernel import beneath
from jobworker.supervisor import compression, helper, retry
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop

_ANSWER_BYTES = 4096
_NOTHING_LEFT = -1
_PATIENCE_MS = 5000
_NICE = 10


class Compressor:
    """Has the segments of jobs compressed, one after the other.

    Args:
        compressed: called with a job's id when a segment of it was, the segment's number, and its bytes now.
    """

    def __init__(self, loop: Loop, log: Log, jobs_fd: int, compressed: Callable[[str, int, int], None]) -> None:
        self._loop = loop
        self._log = log
        self._jobs_fd = jobs_fd
        self._compressed = compressed
        # How large a segment of each job is.
        self._waiting: dict[str, int] = {}
        self._at: tuple[str, int] | None = None
        self._requests = self._answers = -1
        self._said = 0

    def add(self, job_id: str, segment_bytes: int) -> None:
        """The job has closed segments that may be plain."""
        self._waiting[job_id] = segment_bytes
        self._go_on()

    def _go_on(self) -> None:
        if self._waiting and not self._at:
            job_id = next(iter(self._waiting))
            at = self._at = job_id, self._waiting.pop(job_id)
            if self._requests >= 0:
                self._ask(*at)
            else:
                self._start(lambda: self._ask(*at))

    def _ask(self, job_id: str, segment_bytes: int) -> None:
        # One at a time: there is room. That it has died is told by the other pipe.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._requests, f"{job_id} {segment_bytes}\n".encode("ascii"))

    def end(self) -> None:
        """Have the helper end, and wait for that some seconds at most; it leaves what it is at as it was."""
        if self._requests >= 0:
            os.close(self._requests)
            self._loop.forget(self._answers)
            poll = select.poll()
            # Whatever it may still say.
            poll.register(self._answers, 0)
            poll.poll(_PATIENCE_MS)

    def _start(self, begun: Callable[[], None]) -> None:
        def started(pipes: tuple[int, int]) -> None:
            self._requests, self._answers = pipes
            self._loop.watch(self._answers, select.EPOLLIN, self._answered)
            begun()

        event = "no output is compressed: no compressor could be started"
        retry.until_done(self._loop, self._log, event, lambda: _start_helper(self._jobs_fd), started)

    def _answered(self) -> None:
        answer = os.read(self._answers, _ANSWER_BYTES).decode("ascii")
        at, self._at = self._at, None
        if not answer:
            self._ended()
        elif at:
            number, value = map(int, answer.split())
            if number == _NOTHING_LEFT:
                self._say_why(at[0], value)
            else:
                # There may be more; the others come first.
                self._waiting.setdefault(*at)
                self._said = 0
                self._compressed(at[0], number, value)
        self._go_on()

    def _ended(self) -> None:
        """Somebody has killed it. What it was at waits for the job's next segment, or the agent's next start."""
        self._loop.forget(self._answers)
        os.close(self._answers)
        os.close(self._requests)
        self._requests = self._answers = -1
        self._log.error("the compressor was killed; another one goes on")

    def _say_why(self, job_id: str, number: int) -> None:
        """Once, until something is compressed again. A job that was removed meanwhile is no reason."""
        if number not in (0, errno.ENOENT, self._said):
            self._said = number
            name = errno.errorcode.get(number, "UNKNOWN")
            self._log.warning("output is not compressed", job=job_id, error=name)


def _start_helper(jobs_fd: int) -> tuple[int, int]:
    """Start the helper; the pipes that it is asked by, and that it answers by."""
    reading, requests = os.pipe2(os.O_CLOEXEC)
    try:
        return requests, helper.start_telling("jw-compressor", (jobs_fd, reading), _serve)
    except OSError:
        os.close(requests)
        raise
    finally:
        os.close(reading)


def _serve() -> None:
    # A tenth of what others get. Less, on a busy host, would leave it at one segment for minutes.
    os.nice(_NICE)
    with open(1, "rb", closefd=False) as lines:
        for line in lines:
            job_id, segment_bytes = line.decode("ascii").split()
            try:
                done = _compress(job_id, int(segment_bytes))
            except OSError as error:
                done = _NOTHING_LEFT, error.errno or errno.EIO
            os.write(2, f"{done[0]} {done[1]}\n".encode("ascii"))


def _compress(job_id: str, segment_bytes: int) -> tuple[int, int]:
    logs = beneath.open_directory(0, f"{job_id}/logs")
    try:
        done = compression.compress_next(logs, f"job_{job_id}", segment_bytes, _wanted)
    finally:
        os.close(logs)
    return done or (_NOTHING_LEFT, 0)


def _wanted() -> bool:
    """The supervisor is still there."""
    poll = select.poll()
    poll.register(1, 0)
    return not poll.poll(0)

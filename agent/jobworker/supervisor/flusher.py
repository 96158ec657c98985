"""Bringing the jobs' files to the disk, in a process of its own.

An fsync can take seconds on a busy disk, and the pump must not wait for it. The supervisor says through a pipe
which jobs have changed, once a second; a helper, forked from it, flushes their records and logs. What has been
there for two seconds survives a power cut. When the disk is slower than that, the jobs wait for their turn here.
"""

from __future__ import annotations

import contextlib
import os

from jobworker import chain
from jobworker.kernel import beneath
from jobworker.supervisor import helper, retry
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.store import FLUSHED
from jobworker.wire.compressed_segment import SUFFIX

_PERIOD = 1.0
# One write to the pipe is one line of ids, of a size that the kernel takes whole or not at all (pipe(7)).
_IDS_AT_ONCE = 200
# Logs whose closed segments are known to be on the disk.
_MOST_REMEMBERED = 10_000
# Before a name that is not a job's id.
_AUDIT = "audit:"
_LINKED = f"{FLUSHED}.new"
_OPEN_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW


class Flusher:
    """Collects what has changed and tells the helper; starts another helper when there is none any more."""

    def __init__(self, loop: Loop, log: Log, jobs_fd: int) -> None:
        self._loop = loop
        self._log = log
        self._jobs_fd = jobs_fd
        self._changed: dict[str, None] = {}
        self._pipe = -1
        self._start()

    def _start(self) -> None:
        event = "nothing is flushed to the disk: no flusher could be started"
        retry.until_done(self._loop, self._log, event, lambda: _start_helper(self._jobs_fd), self._started)

    def _started(self, pipe: int) -> None:
        self._pipe = pipe

    def changed(self, job_id: str) -> None:
        """Flush what is there of this job, within about a second."""
        if not self._changed:
            self._loop.call_after(_PERIOD, self._tell)
        self._changed[job_id] = None

    def audit_changed(self, name: str) -> None:
        """Flush this file of the audit trails, likewise."""
        self.changed(f"{_AUDIT}{name}")

    def _tell(self) -> None:
        try:
            while self._changed and self._pipe >= 0:
                ids = list(self._changed)[:_IDS_AT_ONCE]
                os.write(self._pipe, (" ".join(ids) + "\n").encode("ascii"))
                for job_id in ids:
                    del self._changed[job_id]
        except BlockingIOError:
            # The disk does not keep up.
            pass
        except BrokenPipeError:
            os.close(self._pipe)
            self._pipe = -1
            self._start()
        if self._changed:
            # A job that changes again meanwhile is still one job.
            self._loop.call_after(_PERIOD, self._tell)


def _start_helper(jobs_fd: int) -> int:
    """Start the helper; the pipe to tell it. It ends when the pipe closes."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(writing, False)
        helper.start("jw-flusher", (jobs_fd, reading), _flush_until_closed)
    except OSError:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    return writing


def _flush_until_closed() -> None:
    # The number of the newest closed segment, by the name of the log or index that it was of.
    flushed: dict[str, int] = {}
    with open(1, "rb", closefd=False) as lines:
        for line in lines:
            for job_id in line.decode("ascii").split():
                if job_id.startswith(_AUDIT):
                    _flush_audit(job_id.removeprefix(_AUDIT))
                else:
                    _flush_job(job_id, flushed)


def _flush_audit(name: str) -> None:
    # A file that has been closed and renamed is named anew.
    with contextlib.suppress(OSError):
        directory = os.open(f"../{chain.DIRECTORY}", beneath.OPEN_DIR, dir_fd=0)
        try:
            _flush(directory, name)
            os.fsync(directory)
        finally:
            os.close(directory)


def _flush_job(job_id: str, flushed: dict[str, int]) -> None:
    # A job that is being removed, a disk that is failing: what can't be flushed is not lost by that.
    with contextlib.suppress(OSError):
        directory = os.open(job_id, beneath.OPEN_DIR, dir_fd=0)
        try:
            _flush_record(directory)
            os.fsync(directory)
        finally:
            os.close(directory)
        logs = os.open(f"{job_id}/logs", beneath.OPEN_DIR, dir_fd=0)
        try:
            _flush_logs(logs, flushed)
            os.fsync(logs)
        finally:
            os.close(logs)


def _flush_logs(directory: int, flushed: dict[str, int]) -> None:
    """Flush the open segment, and the closed ones that have not been since they were closed.

    Nothing is written to them any more, but a disk with a cache of its own would be told to empty that for each.
    """
    closed: list[tuple[int, str]] = []
    for name in os.listdir(directory):
        log, _, end = name.rpartition(".")
        if end.isdecimal():
            closed.append((int(end), log))
        elif not name.endswith(SUFFIX):  # whoever compresses has flushed it
            _flush(directory, name)
    for number, log in sorted(closed):
        if number > flushed.get(log, -1):
            _flush(directory, f"{log}.{number}")
            # The one that has been longest without a new segment is forgotten first.
            flushed.pop(log, None)
            flushed[log] = number
    while len(flushed) > _MOST_REMEMBERED:
        del flushed[next(iter(flushed))]


def _flush_record(directory: int) -> None:
    """Flush the record, and keep what is on the disk now under a second name.

    A power cut may leave nothing of a file that was renamed before it was flushed (XFS, delayed allocation).
    """
    fd = os.open("job.json", _OPEN_FILE, dir_fd=directory)
    try:
        os.fdatasync(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_LINKED, dir_fd=directory)
        # By its descriptor: a newer record may stand under its name by now.
        os.link(f"/proc/self/fd/{fd}", _LINKED, dst_dir_fd=directory, follow_symlinks=True)
        os.rename(_LINKED, FLUSHED, src_dir_fd=directory, dst_dir_fd=directory)
        # A rename does nothing where both names are of one file (rename(2)): the record is as it was.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_LINKED, dir_fd=directory)
    finally:
        os.close(fd)


def _flush(directory: int, name: str) -> None:
    try:
        fd = os.open(name, _OPEN_FILE, dir_fd=directory)
    except FileNotFoundError:
        # Renamed or removed since it was seen, of which the flusher is told as well.
        return
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)

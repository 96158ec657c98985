"""Logs as the supervisor writes them, of one job, and what may become of their files."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from jobworker.jobs import JobRecord, Source, State
from jobworker.supervisor.log_reading import open_segment
from jobworker.supervisor.output import OutputLog
from support.scripted_supervisor import record

ID = "k7f3-9m2q-x4tz-b1cd"
SEGMENT = 1 << 20


def open_log(path: Path, segment_bytes: int = SEGMENT) -> OutputLog:
    log = OutputLog(os.open(path, os.O_RDONLY | os.O_DIRECTORY), ID, segment_bytes)
    log.open()
    return log


def feed(log: OutputLog, data: bytes, source: Source = Source.STDOUT) -> None:
    """Write through a pipe, as a job does, and pump until it is empty."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    while data:
        data = data[os.write(writing, data[: 1 << 16]) :]
        with contextlib.suppress(BlockingIOError):
            while True:
                log.pump(reading, source)
    os.close(writing)
    while log.pump(reading, source):
        pass
    os.close(reading)


def record_of(log: OutputLog, segment_bytes: int = SEGMENT) -> JobRecord:
    return record(
        job_id=ID,
        state=State.ENDED,
        segment_bytes=segment_bytes,
        log_bytes=log.size,
        lost_bytes=log.lost,
    )


@contextlib.contextmanager
def no_room_beyond(size: int) -> Iterator[None]:
    """Files can't grow over this size, as if the disk were full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def plant(path: Path, what: str) -> None:
    """Put something at a file's place that is not the file."""
    target = path.with_name("secret")
    target.write_bytes(b"do not touch")
    if what == "symlink":
        path.symlink_to(target)
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()


def segment_of(path: Path, log: OutputLog, number: int, *, runs: bool) -> bytes:
    """What is handed out as a segment's bytes."""
    directory = os.open(path, os.O_RDONLY)
    try:
        opened = open_segment(directory, record_of(log), number, log.holdings if runs else None)
    finally:
        os.close(directory)
    data = os.pread(opened.log_fd, SEGMENT, 0)
    os.close(opened.log_fd)
    os.close(opened.index_fd)
    return data

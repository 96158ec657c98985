"""Segments of logs as the supervisor would have made them of given writes, behind real descriptors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from jobworker.gateway.segments import Segment
from jobworker.jobs import Source
from jobworker.wire.output_index import LOST, RECORD

NANOS = 1_000_000_000


class Write(NamedTuple):
    """What one source wrote in one go; LOST: what the agent could not write."""

    source: int
    data: bytes


def memfd(data: bytes) -> int:
    fd = os.memfd_create("log")
    os.write(fd, data)
    return fd


def files(writes: Sequence[Write], start: int = 0, stop: int = 1 << 40) -> tuple[int, int]:
    """What of them is between two offsets, as a log and its index; the nth came n seconds after 1970 began."""
    log, index, offset = memfd(b""), b"", 0
    for number, write in enumerate(writes, 1):
        first, end = max(offset, start), min(offset + len(write.data), stop)
        if first < end:
            index += RECORD.pack(first, end - first, write.source, 0, number * NANOS)
            if write.source != LOST:
                os.pwrite(log, write.data[first - offset : end - offset], first - start)
        offset += len(write.data)
    return log, memfd(index)


def segment(writes: Sequence[Write]) -> Segment:
    """One segment that holds all of them."""
    return Segment(0, *files(writes))


@contextmanager
def counted_reads() -> Iterator[list[int]]:
    """How many bytes each `os.pread` was to read meanwhile."""
    sizes, read = [], os.pread

    def counted(fd: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return read(fd, size, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", counted)
        yield sizes


def written(writes: Sequence[Write], source: Source) -> bytes:
    return b"".join(write.data for write in writes if write.source == source)

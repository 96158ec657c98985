"""Compressing closed segments of logs, so that nothing is lost or left behind by a death at any point.

The compressed file has no name until it is whole and on the disk, and the plain one goes after that. Where both
are there, the plain one is the truth. A segment that does not shrink has its plain file made read-only, and is not
tried again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable

from jobworker.kernel import beneath
from jobworker.supervisor import segments
from jobworker.wire.compressed_segment import (
    BLOCK_BYTES,
    HEADER_BYTES,
    MAX_SEGMENT_BYTES,
    SUFFIX,
    TRAILER,
    header,
)

# The fastest: a log shrinks to a fifth at 180 MiB/s; with zlib's default to a seventh, at 60.
_LEVEL = 1
_AS_SMALL_AS_IT_GETS = 0o440


def compress_next(
    directory_fd: int, name: str, segment_bytes: int, wanted: Callable[[], bool] = lambda: True
) -> tuple[int, int] | None:
    """Compress the oldest closed segment of a log that can be; its number, and the bytes it has now.

    Args:
        directory_fd: of the log.
        name: of the open segment, without its ending.
        segment_bytes: how large a segment is.
        wanted: asked before each block; if it is not any more, everything is left as it is.

    Raises:
        OSError: the disk does not take it, or can't hold a file without a name; the plain one is as it was.
    """
    for number in sorted(segments.plain(directory_fd, name)):
        size = _compress(directory_fd, f"{name}.log.{number}", segment_bytes, wanted)
        if size:
            return number, size
    return None


def _compress(directory_fd: int, name: str, segment_bytes: int, wanted: Callable[[], bool]) -> int:
    """The bytes of the compressed file; 0 if it is left as it is."""
    try:
        plain = beneath.open_regular(directory_fd, name, os.O_RDONLY)
    except OSError:
        # Dropped meanwhile; or somebody has put something else there, which readers are told of.
        return 0
    try:
        if not _is_due(plain, segment_bytes) or not wanted():
            return 0
        if not _shrinks(plain, segment_bytes):
            os.fchmod(plain, _AS_SMALL_AS_IT_GETS)
            return 0
        return _compress_file(directory_fd, name, plain, segment_bytes, wanted)
    finally:
        os.close(plain)


def _is_due(plain: int, segment_bytes: int) -> bool:
    try:
        # The helper of a supervisor that was replaced meanwhile may still be at it.
        fcntl.flock(plain, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    status = os.fstat(plain)
    # One that is shorter has gaps or is damaged, and is told of as it is.
    return bool(status.st_mode & stat.S_IWUSR and status.st_nlink) and (
        status.st_size == segment_bytes <= MAX_SEGMENT_BYTES
    )


def _compress_file(
    directory_fd: int, name: str, plain: int, segment_bytes: int, wanted: Callable[[], bool]
) -> int:
    compressed = f"{name}{SUFFIX}"
    beside = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o640, dir_fd=directory_fd)
    try:
        size = _write(plain, beside, segment_bytes, wanted)
        if not size:
            return 0
        os.fsync(beside)
        with contextlib.suppress(FileNotFoundError):
            # Of a life that was cut off before the plain one was gone.
            os.unlink(compressed, dir_fd=directory_fd)
        os.link(f"/proc/self/fd/{beside}", compressed, dst_dir_fd=directory_fd)
    finally:
        os.close(beside)
    os.fsync(directory_fd)
    try:
        os.unlink(name, dir_fd=directory_fd)
    except FileNotFoundError:
        # The segment was dropped meanwhile.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(compressed, dir_fd=directory_fd)
        return 0
    return size


def _shrinks(plain: int, segment_bytes: int) -> bool:
    """By the first block, one in the middle and the last, whether it is worth it: an eighth at least."""
    last = (segment_bytes - 1) // BLOCK_BYTES
    blocks = [os.pread(plain, BLOCK_BYTES, number * BLOCK_BYTES) for number in {0, last // 2, last}]
    return sum(len(_member(block)) for block in blocks) < sum(map(len, blocks)) * 7 // 8


def _write(plain: int, to: int, segment_bytes: int, wanted: Callable[[], bool]) -> int:
    """Write the compressed file; its length, or 0 if it is no use."""
    size = 0
    for offset in range(0, segment_bytes, BLOCK_BYTES):
        block = os.pread(plain, BLOCK_BYTES, offset)
        # Somebody may have cut the plain one meanwhile.
        if len(block) != min(BLOCK_BYTES, segment_bytes - offset) or not wanted():
            return 0
        member = _member(block)
        if os.write(to, member) != len(member):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        size += len(member)
    if size >= segment_bytes:
        os.fchmod(plain, _AS_SMALL_AS_IT_GETS)
        return 0
    return size


def _member(block: bytes) -> bytes:
    # Only the helper that compresses has any use for it.
    import zlib  # noqa: PLC0415

    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    data = packer.compress(block) + packer.flush()
    trailer = TRAILER.pack(zlib.crc32(block), len(block))
    return header(HEADER_BYTES + len(data) + len(trailer)) + data + trailer

"""Opening below a directory that others may write to: no link is followed, no FIFO waited for; openat2(2)."""

from __future__ import annotations

import errno
import os
import stat

from jobworker.kernel import syscalls

# How a directory is opened by name, and no link to one.
OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_PIECE = 1024 * 1024
_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS


def open_directory(directory_fd: int, path: str) -> int:
    return syscalls.openat2(directory_fd, path, os.O_RDONLY | os.O_DIRECTORY, _BENEATH)


def open_unmounted(directory_fd: int, path: str, flags: int = os.O_RDONLY) -> int:
    """Open a directory, but none that somebody has mounted there.

    Raises:
        OSError: EXDEV if the way to it leads through a mount.
    """
    return syscalls.openat2(directory_fd, path, flags | os.O_DIRECTORY, _BENEATH | syscalls.RESOLVE_NO_XDEV)


def open_regular(directory_fd: int, path: str, flags: int) -> int:
    """Open a regular file; one that is made is its owner's to write and its group's to read.

    Raises:
        OSError: EINVAL if it is anything else.
    """
    mode = 0o640 if flags & os.O_CREAT else 0
    fd = syscalls.openat2(directory_fd, path, flags | os.O_NONBLOCK, _BENEATH, mode)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
    except OSError:
        os.close(fd)
        raise
    return fd


def read_regular(directory_fd: int, path: str, limit: int) -> bytes:
    """What a regular file holds, up to so many bytes.

    Raises:
        OSError: EINVAL if it is anything else.
    """
    data, fd = bytearray(), open_regular(directory_fd, path, os.O_RDONLY)
    try:
        # In pieces, since a read has room made for all that it may give.
        while chunk := os.read(fd, min(limit - len(data), _PIECE)):
            data += chunk
    finally:
        os.close(fd)
    return bytes(data)

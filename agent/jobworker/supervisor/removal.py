"""Removing directories in which jobs have had their way, without ever leaving them.

Trees may be deep beyond any limit of paths, descriptors and recursion: a directory that is found below is moved to
the top and emptied there. No link is followed, nothing is opened but directories, by descriptors of their parents.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

from jobworker.kernel import beneath

_OPEN_PATH = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def remove(parent_fd: int, names: tuple[str, ...]) -> None:
    """Remove directories with all that is in them; what can't be removed stays."""
    for name in names:
        with contextlib.suppress(OSError):
            top = os.open(name, beneath.OPEN_DIR, dir_fd=parent_fd)
            try:
                _empty(top)
                # The agent may have put the last compressed segment there meanwhile.
                _empty(top)
            finally:
                os.close(top)
            os.rmdir(name, dir_fd=parent_fd)


def _empty(top: int) -> None:
    run = os.urandom(8).hex()
    fresh = (f"{run}-{number}" for number in itertools.count())
    waiting = _clear(top, top, fresh)
    while waiting:
        name = waiting.pop()
        with contextlib.suppress(OSError):
            fd = os.open(name, beneath.OPEN_DIR, dir_fd=top)
            try:
                waiting += _clear(fd, top, fresh)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=top)


def _clear(fd: int, top: int, fresh: Iterator[str]) -> list[str]:
    """Unlink a directory's files and move its directories to the top; what these are called there."""
    moved = []
    # The whole list first: entries that are made meanwhile may or may not be seen.
    for name, is_directory in [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in os.scandir(fd)]:
        with contextlib.suppress(OSError):
            if is_directory:
                _let_in(name, fd)
                to = next(fresh)
                os.rename(name, to, src_dir_fd=fd, dst_dir_fd=top)
                moved.append(to)
            else:
                os.unlink(name, dir_fd=fd)
    return moved


def _let_in(name: str, fd: int) -> None:
    """A job may have shut out its own user, who is us where the agent is not root."""
    directory = os.open(name, _OPEN_PATH, dir_fd=fd)
    try:
        # By its descriptor: another job may put a link in its place at any time, and chmod(2) follows that.
        os.chmod(f"/proc/self/fd/{directory}", 0o700)
    finally:
        os.close(directory)

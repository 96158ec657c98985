"""Removing directories in which jobs have had their way, without ever leaving them.

Trees may be deep beyond any limit of paths, descriptors and recursion, and wide beyond what memory holds: a
directory that is found below is moved to the top and emptied there, and only its number is remembered. No
link is followed, no mount entered, nothing is opened but directories, by descriptors of their parents.
"""

from __future__ import annotations

import contextlib
import os

from jobworker.kernel import beneath

# Where removing shifts what has not been read yet (some file systems in user space), a pass finds half of it.
_PASSES = 64


def remove(parent_fd: int, names: tuple[str, ...]) -> None:
    """Remove directories with all that is in them; what can't be removed stays."""
    for name in names:
        with contextlib.suppress(OSError):
            top = beneath.open_unmounted(parent_fd, name)
            try:
                _empty(top)
            finally:
                os.close(top)
            os.rmdir(name, dir_fd=parent_fd)


def _empty(top: int) -> None:
    for _ in range(_PASSES):
        sweep = _Sweep(top)
        sweep.run()
        # The agent may have put the last compressed segment there meanwhile.
        if not sweep.has_removed:
            break


class _Sweep:
    """One pass through all that is below a directory, each directory once.

    Attributes:
        has_removed: anything at all.
    """

    def __init__(self, top: int) -> None:
        self.has_removed = False
        self._top = top
        self._prefix = f"{os.urandom(8).hex()}-"
        # The directories that were moved to the top; their numbers are their names there.
        self._moved = 0

    def run(self) -> None:
        self._clear(self._top)
        done = 0
        while done < self._moved:
            with contextlib.suppress(OSError):
                self._remove(f"{self._prefix}{done}")
            done += 1

    def _remove(self, name: str) -> None:
        fd = beneath.open_unmounted(self._top, name)
        try:
            self._clear(fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=self._top)
        self.has_removed = True

    def _clear(self, fd: int) -> None:
        """Remove a directory's files and its empty directories, and move the others to the top."""
        with os.scandir(fd) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.name, dir_fd=fd)
                        self.has_removed = True
                    # What was moved while this reads the top may be read as well.
                    elif not entry.name.startswith(self._prefix):
                        self._take(entry.name, fd)

    def _take(self, name: str, fd: int) -> None:
        # Most have nothing in them, and the top may have no room for more, on a disk that is full.
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=fd)
            self.has_removed = True
            return
        _let_in(name, fd)
        os.rename(name, f"{self._prefix}{self._moved}", src_dir_fd=fd, dst_dir_fd=self._top)
        self._moved += 1


def _let_in(name: str, fd: int) -> None:
    """A job may have shut out its own user, who is us where the agent is not root."""
    directory = beneath.open_unmounted(fd, name, os.O_PATH)
    try:
        # By its descriptor: another job may put a link in its place at any time, and chmod(2) follows that.
        os.chmod(f"/proc/self/fd/{directory}", 0o700)
    finally:
        os.close(directory)

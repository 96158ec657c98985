"""Being told by the kernel that somebody has written to a file of a directory: inotify(7)."""

from __future__ import annotations

import contextlib
import os
import struct

from jobworker.kernel import syscalls

_MODIFIED = 0x0000_0002
_OVERFLOW = 0x0000_4000
# struct inotify_event: watch, mask, cookie, length of the name.
_HEAD = struct.Struct("iIII")
_READ = 64 * 1024


class Inotify:
    """Owns its descriptor, which is readable when there is something to tell."""

    def __init__(self, passed_over: tuple[str, ...] = ()) -> None:
        """Make it.

        Args:
            passed_over: how files' names end that nobody asks about.

        Raises:
            OSError: EMFILE where the user may have no more of them (fs.inotify.max_user_instances).
        """
        self._passed_over = tuple(map(os.fsencode, passed_over))
        self.fd = syscalls.inotify_init(os.O_NONBLOCK | os.O_CLOEXEC)

    def watch(self, directory_fd: int) -> int:
        """Tell of writes to this directory's files from now on.

        Returns:
            the watch's number, which no other one will have.

        Raises:
            OSError: ENOSPC where the user may have no more of them (fs.inotify.max_user_watches).
        """
        # There is no call that takes a descriptor; this name leads to what it is open on.
        return syscalls.inotify_add_watch(self.fd, f"/proc/self/fd/{directory_fd}", _MODIFIED)

    def forget(self, watch: int) -> None:
        # It went with its directory, perhaps.
        with contextlib.suppress(OSError):
            syscalls.inotify_rm_watch(self.fd, watch)

    def read(self) -> tuple[set[int], bool]:
        """The watches whose files were written to, and whether the kernel has lost count of others.

        Raises:
            BlockingIOError: there is nothing to tell.
        """
        data, at = os.read(self.fd, _READ), 0
        watches, lost = set(), False
        while at < len(data):
            watch, mask, _, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size + length
            name = data[at - length : at].rstrip(b"\0")
            if mask & _OVERFLOW:
                lost = True
            elif mask & _MODIFIED and not name.endswith(self._passed_over):
                watches.add(watch)
        return watches, lost

    def close(self) -> None:
        os.close(self.fd)

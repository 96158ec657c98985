"""A file system that never answers, like a dead server of the network: who asks it waits, and can't be killed."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import threading
from collections.abc import Iterator

# fuse(4), include/uapi/linux/fuse.h: the header of a request, and the answer to the first one, of version 7.31.
_HEADER = struct.Struct("<IIQQIIIHH")
_INIT, _LOOKUP = 26, 1
_INIT_ANSWER = struct.pack("<IiQIIIIHHIIHHI28x", 80, 0, 0, 7, 31, 0, 0, 1, 1, 4096, 1, 0, 0, 0)
_UNIQUE = slice(8, 16)
_DEADLINE = 60


class Hanging:
    """The file system of one mount.

    Attributes:
        path: where it is mounted.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._asked = threading.Event()
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        command = ["mount", "--internal-only", "--types", "fuse", "--options", options, "jobworker-test", path]
        subprocess.run(command, check=True, pass_fds=(self._fd,))
        # A request that was read and is not answered is waited for by whatever means.
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        # Ends with the connection.
        with contextlib.suppress(OSError):
            while request := os.read(self._fd, 1 << 17):
                _, operation, unique, *_ = _HEADER.unpack_from(request)
                if operation == _INIT:
                    answer = bytearray(_INIT_ANSWER)
                    answer[_UNIQUE] = struct.pack("<Q", unique)
                    os.write(self._fd, answer)
                elif operation == _LOOKUP:
                    self._asked.set()

    def wait_until_asked(self) -> None:
        """Until somebody has asked for a file, and waits."""
        assert self._asked.wait(_DEADLINE), "nobody has asked"

    def let_go(self) -> None:
        """Everybody who waits gets an error."""
        subprocess.run(["umount", "--force", "--lazy", self.path], check=True)


@contextlib.contextmanager
def hanging(path: str) -> Iterator[Hanging]:
    """Have one mounted on a new directory."""
    os.mkdir(path)
    made = Hanging(path)
    try:
        yield made
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            made.let_go()

"""A service manager as a service sees it: it is notified, keeps descriptors, and hands them back at a start."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from jobworker.wire import sockets

_END = b"end"
_PATIENCE = 60
# Puts the descriptors from 3 on, and says so in the environment (sd_listen_fds(3)).
_START = """
import os, resource, sys
address, fds, names, *command = sys.argv[1:]
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
high = [os.dup2(int(fd), 1000 + number) for number, fd in enumerate(fds.split())]
for fd in fds.split():
    os.close(int(fd))
for number, fd in enumerate(high):
    os.dup2(fd, 3 + number)
    os.close(fd)
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
os.environ["NOTIFY_SOCKET"] = address
if high:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


class ServiceManager:
    """Listens at a socket, in a thread of its own.

    Attributes:
        said: what services have told, in order.
        stored: the descriptors that they have left here, by name.
    """

    def __init__(self, path: str) -> None:
        self.address = path
        self.said: list[str] = []
        self.stored: dict[str, int] = {}
        self._news = threading.Condition()
        self._open()

    def _open(self) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.address)
        # Of a test that has failed nobody may come to close it.
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(_END, self.address)
        self._thread.join()
        self._sock.close()
        os.unlink(self.address)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Meanwhile nobody listens; what is stored stays."""
        self._close()
        try:
            yield
        finally:
            self._open()

    def _listen(self) -> None:
        while True:
            data, fds, _ = sockets.receive(self._sock, 4096)
            if data == _END:
                return
            with self._news:
                self._apply(data.decode().splitlines(), fds)
                self._news.notify_all()

    def wait_for(self, state: Callable[[ServiceManager], bool]) -> None:
        """Wait until something is stored or said."""
        with self._news:
            assert self._news.wait_for(lambda: state(self), _PATIENCE), (self.said, self.stored)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Meanwhile it takes nothing more than what its socket has room for."""
        with self._news:
            yield

    def _apply(self, lines: list[str], fds: sockets.Descriptors) -> None:
        name = next((line.partition("=")[2] for line in lines if line.startswith("FDNAME=")), "")
        if "FDSTORE=1" in lines:
            assert "FDPOLL=0" in lines
            (self.stored[name],) = fds.take()
        elif "FDSTOREREMOVE=1" in lines:
            os.close(self.stored.pop(name))
        else:
            self.said += lines

    def command(self, command: list[str]) -> list[str]:
        """What starts a service as a service manager does; it is to be given the stored descriptors."""
        fds = " ".join(map(str, self.stored.values()))
        return [sys.executable, "-I", "-c", _START, self.address, fds, ":".join(self.stored), *command]

    def close(self) -> None:
        self._close()
        for fd in self.stored.values():
            os.close(fd)

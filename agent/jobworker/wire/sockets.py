"""SOCK_SEQPACKET Unix sockets that carry descriptors (unix(7)).

Knows nothing of what is said over them. Imports as little as it can, since the keeper loads it too.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct

# Twice this is what the kernel allows an unprivileged sender (net.core.wmem_max is 212,992 by default).
_SNDBUF = 212_992
_MAX_FDS = 3
# asm-generic/socket.h
_SO_PASSRIGHTS = 83
_INT_SIZE = array.array("i").itemsize


class Descriptors:
    """Descriptors that came with a message; closed at the end of a `with` unless taken."""

    def __init__(self, fds: tuple[int, ...] = ()) -> None:
        self._fds = fds

    def __len__(self) -> int:
        return len(self._fds)

    def take(self) -> tuple[int, ...]:
        """Hand the ownership of all of them to the caller."""
        fds, self._fds = self._fds, ()
        return fds

    def close(self) -> None:
        for fd in self.take():
            os.close(fd)

    def __enter__(self) -> Descriptors:  # noqa: PYI034 - typing.Self would cost the keeper an import
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def listen(directory_fd: int, name: str, mode: int) -> socket.socket:
    """A listening socket at `name` in an open directory, in place of one left there by an earlier life."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory_fd)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    old_mask = os.umask(0o177)
    try:
        # Through /proc, since sun_path holds 108 bytes and a data directory may be deeper than that.
        sock.bind(f"/proc/self/fd/{directory_fd}/{name}")
    finally:
        os.umask(old_mask)
    os.chmod(name, mode, dir_fd=directory_fd)
    sock.listen(16)
    sock.setblocking(False)
    return sock


def connect(path: str) -> socket.socket:
    """Connect to a listening socket, however long its path is; non-blocking afterwards.

    Raises:
        OSError: nobody listens there, or not for us.
    """
    directory_fd = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(f"/proc/self/fd/{directory_fd}/{os.path.basename(path)}")
    except OSError:
        sock.close()
        raise
    finally:
        os.close(directory_fd)
    return _prepared(sock)


def accept(listener: socket.socket) -> socket.socket:
    """Accept a connection that takes no descriptors, where the kernel has that (Linux 6.16).

    To close one that somebody has sent may take as long as that wants (SO_LINGER).
    """
    sock, _ = listener.accept()
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    return _prepared(sock)


def _prepared(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SNDBUF)
    return sock


def peer_uid(sock: socket.socket) -> int:
    """The user id of the process at the other end, as of its connect(2), from the kernel (SO_PEERCRED)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def send(sock: socket.socket, data: bytes, fds: tuple[int, ...] = ()) -> None:
    """Send one message, whole or not at all; the descriptors stay the caller's.

    Raises:
        BlockingIOError: the peer does not keep up.
        OSError: the peer is gone.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, size: int) -> tuple[bytes, Descriptors, bool]:
    """Receive one message: its bytes (none at the end), its descriptors, and whether it is whole.

    Raises:
        BlockingIOError: nothing is there.
        OSError: it failed.
    """
    try:
        data, ancillary, flags, _ = _received(sock, size)
    except ConnectionResetError:
        # A peer that has left something unread is told of once, ahead of what it had said before.
        data, ancillary, flags, _ = _received(sock, size)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % _INT_SIZE])
    whole = not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
    return data, Descriptors(tuple(fds)), whole


def _received(sock: socket.socket, size: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
    return sock.recvmsg(size, socket.CMSG_SPACE(_MAX_FDS * _INT_SIZE), socket.MSG_CMSG_CLOEXEC)


def pid_of(pidfd: int) -> int:
    """The process that a pidfd, received from another process, refers to; -1 if it is gone (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["Pid"])

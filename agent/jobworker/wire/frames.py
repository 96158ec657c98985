"""Frames on a SOCK_SEQPACKET Unix socket: one message each, bounded, with descriptors that have an owner.

A frame is JSON: `{"type": …, "seq": …, "body": …}`. `seq` ties an answer to its request; events have 0.
The kernel keeps frames whole, so there is no length to lie about (unix(7)).
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any, Self

from jobworker import codec
from jobworker.errors import JobWorkerError, ProtocolError
from jobworker.wire import messages

# An unprivileged sender's SO_SNDBUF is twice net.core.wmem_max (212,992 by default); a frame must fit in it.
MAX_FRAME = 400 * 1024
_SNDBUF = 212_992
_MAX_FDS = 2
_INT_SIZE = array.array("i").itemsize

_TYPES = {cls.__name__: cls for cls in (*messages.REQUESTS, *messages.ANSWERS, *messages.EVENTS)}


class Descriptors:
    """Descriptors that came with a frame; closed at the end of a `with` unless taken."""

    def __init__(self, fds: tuple[int, ...] = ()) -> None:
        self._fds = list(fds)

    def __len__(self) -> int:
        return len(self._fds)

    def take(self) -> tuple[int, ...]:
        """Hand the ownership of all of them to the caller."""
        fds, self._fds = tuple(self._fds), []
        return fds

    def close(self) -> None:
        for fd in self.take():
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Frame:
    """One message as received."""

    seq: int
    message: Any
    fds: Descriptors


@dataclass(frozen=True, slots=True)
class _Envelope:
    type: str
    seq: int


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end (SO_PEERCRED): as of connect(2), from the kernel."""

    pid: int
    uid: int
    gid: int


def listen(directory_fd: int, name: str, mode: int) -> socket.socket:
    """A listening socket at `name` in an open directory, in place of one left there by an earlier life."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory_fd)
    sock = _new_socket()
    # Through /proc, since sun_path holds 108 bytes and a data directory may be deeper than that.
    old_mask = os.umask(0o177)
    try:
        sock.bind(f"/proc/self/fd/{directory_fd}/{name}")
    finally:
        os.umask(old_mask)
    os.chmod(name, mode, dir_fd=directory_fd)
    sock.listen(16)
    return sock


def connect(path: str) -> socket.socket:
    """Connect to a listening socket, however long its path is; non-blocking afterwards.

    Raises:
        OSError: nobody listens there, or not for us.
    """
    directory_fd = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock = _new_socket()
        try:
            sock.connect(f"/proc/self/fd/{directory_fd}/{os.path.basename(path)}")
        except OSError:
            sock.close()
            raise
    finally:
        os.close(directory_fd)
    sock.setblocking(False)
    return sock


def accept(listener: socket.socket) -> tuple[socket.socket, Peer]:
    sock, _ = listener.accept()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SNDBUF)
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return sock, Peer(*struct.unpack("3i", credentials))


def _new_socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SNDBUF)
    return sock


def encode(message: Any, seq: int) -> bytes:
    """Encode one message.

    Raises:
        ProtocolError: it does not fit a frame.
    """
    body = codec.dumps(message)
    frame = b'{"type":"%s","seq":%d,"body":%s}' % (type(message).__name__.encode(), seq, body)
    if len(frame) > MAX_FRAME:
        raise ProtocolError(f"a message of {len(frame)} bytes, more than {MAX_FRAME}")
    return frame


def send(sock: socket.socket, frame: bytes, fds: tuple[int, ...] = ()) -> None:
    """Send an encoded frame, whole or not at all.

    Raises:
        BlockingIOError: the peer does not keep up.
        OSError: the peer is gone.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([frame], ancillary, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


def receive(sock: socket.socket, allowed: tuple[type[Any], ...]) -> Frame | None:
    """Receive one frame whose message is of one of the allowed types; None at the end of the connection.

    Raises:
        BlockingIOError: nothing is there.
        ProtocolError: what came is not such a frame; its descriptors are closed.
        OSError: the peer is gone.
    """
    room, how = socket.CMSG_SPACE(_MAX_FDS * _INT_SIZE), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    data, ancillary, flags, _ = sock.recvmsg(MAX_FRAME, room, how)
    fds = Descriptors(_descriptors(ancillary))
    if not data and not fds:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError("a frame that is too large or carries too many descriptors")
        seq, message = _decode(data, allowed)
    except ProtocolError:
        fds.close()
        raise
    return Frame(seq, message, fds)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return tuple(fds)


def _decode(data: bytes, allowed: tuple[type[Any], ...]) -> tuple[int, Any]:
    plain = codec.parse(data)
    if type(plain) is not dict:
        raise ProtocolError("a frame that is not an object")
    body = plain.pop("body", None)
    envelope = codec.from_plain(_Envelope, plain)
    cls = _TYPES.get(envelope.type)
    if cls is None or cls not in allowed:
        raise ProtocolError(f"{envelope.type!r:.60} is not a message that may come here")
    return envelope.seq, codec.from_plain(cls, body)


# Errors cross by name; only those whose fields are strings and integers, which all of them are.
_ERRORS = {cls.__name__: cls for cls in JobWorkerError.__subclasses__()}


def failed(error: JobWorkerError) -> messages.Failed:
    """The message that carries an error."""
    return messages.Failed(type(error).__name__, tuple(str(value) for value in vars(error).values()))


def to_error(message: messages.Failed) -> JobWorkerError:
    """The error that a message carries.

    Raises:
        ProtocolError: there is no such error.
    """
    cls = _ERRORS.get(message.error)
    if cls is None:
        raise ProtocolError(f"unknown error {message.error!r:.60}")
    hints = tuple(codec.field_types(cls))
    if len(hints) != len(message.fields):
        raise ProtocolError(f"{message.error}: {len(message.fields)} fields instead of {len(hints)}")
    try:
        values = [hint(text) for hint, text in zip(hints, message.fields, strict=True)]
    except ValueError:
        raise ProtocolError(f"{message.error}: a field that is not a number") from None
    return cls(*values)

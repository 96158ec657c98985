"""A follower of output whose window and connection are a test's own to handle."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import certs, http2

_METHOD = "/jobworker.api.v1.JobWorkerService/Stream"
_STREAM = 1
_READ_BYTES = 64 * 1024
# The most that a window may be.
_WHOLE = 2**31 - 1
_RESET = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Follower:
    """One Stream, on a connection of its own."""

    _secure: ssl.SSLSocket
    _window: int
    _unread: http2.Unread = field(default_factory=http2.Unread)
    _data: bytearray = field(default_factory=bytearray)

    def wait_stalled(self) -> None:
        """Wait until its window is full, and the server is left with the rest."""
        while len(self._data) < self._window:
            self._receive()
        assert len(self._data) == self._window

    def open(self) -> None:
        """Have a window for all that is to come."""
        left = struct.pack(">I", _WHOLE - self._window)
        self._secure.sendall(http2.frame(http2.WINDOW_UPDATE, 0, _STREAM, left))

    def messages(self) -> Iterator[pb.StreamResponse]:
        """All that come, to the end of the stream."""
        ended = False
        while not ended:
            ended = self._receive()
            yield from self._whole()

    def cut(self) -> None:
        """End the connection as a host does that is gone: by a reset, in the middle of whatever is said."""
        self._secure.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._secure.close()

    def _receive(self) -> bool:
        """Take in some of what has come; whether the stream has ended with it."""
        data = self._secure.recv(_READ_BYTES)
        assert data, "the server has closed the connection"
        ended = False
        for frame in self._unread.frames(data):
            self._secure.sendall(frame.answer())
            assert frame.kind not in {http2.RST_STREAM, http2.GOAWAY}, frame
            if frame.kind == http2.DATA:
                self._data += frame.payload
            ended |= frame.stream == _STREAM and bool(frame.flags & http2.END_STREAM)
        return ended

    def _whole(self) -> Iterator[pb.StreamResponse]:
        """The messages that are there by now, each behind a byte of flags and its length."""
        begin = 0
        while len(self._data) >= begin + 5:
            _, length = struct.unpack_from(">BI", self._data, begin)
            end = begin + 5 + length
            if len(self._data) < end:
                break
            yield pb.StreamResponse.FromString(bytes(self._data[begin + 5 : end]))
            begin = end
        del self._data[:begin]


@contextlib.contextmanager
def following(
    address: str, files: certs.Files, request: pb.StreamRequest, seconds: float, *, window: int = _WHOLE
) -> Iterator[Follower]:
    """A follower whose stream has a window of so many bytes.

    Args:
        address: HOST:PORT.
        files: who it is.
        request: what it follows.
        seconds: the longest that it waits for anything.
        window: of the stream; the connection's is as large as one can be.
    """
    with http2.connection(address, files, seconds, window=window) as secure:
        connection_window = http2.frame(http2.WINDOW_UPDATE, payload=http2.OPEN)
        secure.sendall(connection_window + http2.request(_STREAM, _METHOD, request.SerializeToString()))
        yield Follower(secure, window)

"""Frames of HTTP/2 (RFC 9113) by hand, for peers that no library is made to play."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from support import certs

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
CANCEL = struct.pack(">I", 8)
# What each stream and connection begins with (6.9.2); and an update by so much that it is never used up.
FIRST_WINDOW = 65_535
OPEN = struct.pack(">I", 2**31 - 1 - FIRST_WINDOW)
_INITIAL_WINDOW_SIZE = 4
_HEAD_BYTES = 9


@dataclass(frozen=True, slots=True)
class Frame:
    """One that has come."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    def answer(self) -> bytes:
        """What the peer has to be sent for it, if anything."""
        if self.kind not in {SETTINGS, PING} or self.flags & ACK:
            return b""
        return frame(self.kind, ACK, 0, self.payload if self.kind == PING else b"")


class Unread:
    """Bytes that have come, of which frames are made."""

    def __init__(self) -> None:
        self._data = bytearray()

    def frames(self, data: bytes) -> Iterator[Frame]:
        """Those that are whole with these bytes."""
        self._data += data
        begin = 0
        while len(self._data) >= begin + _HEAD_BYTES:
            high, low, kind, flags, stream = struct.unpack_from(">BHBBI", self._data, begin)
            end = begin + _HEAD_BYTES + (high << 16 | low)
            if len(self._data) < end:
                break
            yield Frame(kind, flags, stream & 0x7FFF_FFFF, bytes(self._data[begin + _HEAD_BYTES : end]))
            begin = end
        del self._data[:begin]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header(name: bytes, value: bytes) -> bytes:
    """One header, written out, of which the peer need not remember anything (RFC 7541, 6.2.2)."""
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


def call(method: str) -> bytes:
    """The headers that a call begins with."""
    pairs = {
        b":method": b"POST",
        b":scheme": b"https",
        b":path": method.encode(),
        b":authority": b"localhost",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    return b"".join(header(*pair) for pair in pairs.items())


def request(stream: int, method: str, message: bytes) -> bytes:
    """All that is said in a call with one message."""
    data = struct.pack(">BI", 0, len(message)) + message
    headers = frame(HEADERS, END_HEADERS, stream, call(method))
    return headers + frame(DATA, END_STREAM, stream, data)


@contextlib.contextmanager
def connection(
    address: str, files: certs.Files, seconds: float, *, window: int = FIRST_WINDOW
) -> Iterator[ssl.SSLSocket]:
    """A connection that has said its preface and settings; nothing takes longer on it than this.

    Args:
        address: HOST:PORT.
        files: who connects.
        seconds: for each thing that is done on it.
        window: what each stream begins with.
    """
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), seconds) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)
        secure.sendall(PREFACE + frame(SETTINGS, payload=settings))
        yield secure

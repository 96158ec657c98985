"""Frames of HTTP/2 (RFC 9113) by hand, for peers that no library is made to play."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator

from support import certs

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
CANCEL = struct.pack(">I", 8)


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


@contextlib.contextmanager
def connection(address: str, files: certs.Files, seconds: float) -> Iterator[ssl.SSLSocket]:
    """A connection that has said its preface and empty settings; nothing takes longer on it than this."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), seconds) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        secure.sendall(PREFACE + frame(SETTINGS))
        yield secure

"""`python -m bench.fanout_client ADDR METHOD CA CERT KEY REQUEST COUNT STALLED`: many followers in one process.

The output that is followed is that of `bench.ticks`. Says an empty line when each follower has one; then, for each
line of standard input, the latencies since the line before, in microseconds. STALLED more have asked for the same
and never take anything.

It reads frames itself: with a call of grpc's for each follower, on a machine of two processors, the client would
be what is measured.
"""

from __future__ import annotations

import contextlib
import selectors
import ssl
import struct
import sys
import time
from collections.abc import Iterator

from bench.ticks import times
from support import certs, http2

STREAMS_EACH = 50
_SECONDS = 60.0
_READ_BYTES = 64 * 1024
_HEAD_BYTES = 9
# The largest window there is, less the one that each stream and connection begins with (RFC 9113, 6.9).
_WINDOW = struct.pack(">I", 2**31 - 1 - 65_535)


class Connection:
    """Streams of one connection. Those that take everything come first; the rest keep to their first window."""

    def __init__(self, secure: ssl.SSLSocket, method: str, request: bytes, taking: int, stalled: int) -> None:
        self._secure = secure
        self._taking = range(1, 1 + 2 * taking, 2)
        self._unread = bytearray()
        message = struct.pack(">BI", 0, len(request)) + request
        calls = [http2.frame(http2.WINDOW_UPDATE, payload=_WINDOW)]
        for stream in range(1, 1 + 2 * (taking + stalled), 2):
            calls.append(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, http2.call(method)))
            calls.append(http2.frame(http2.DATA, http2.END_STREAM, stream, message))
            if stream in self._taking:
                calls.append(http2.frame(http2.WINDOW_UPDATE, 0, stream, _WINDOW))
        secure.sendall(b"".join(calls))
        secure.setblocking(False)

    def fileno(self) -> int:
        return self._secure.fileno()

    def lines(self) -> Iterator[tuple[int, int]]:
        """Of each line that has come: its stream, and how long it took, in nanoseconds."""
        for now, kind, stream, payload in self._frames():
            if kind == http2.DATA and stream in self._taking:
                for written in times(payload):
                    yield stream, now - written

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """When it came, its kind, its stream and what it holds; what asks for an answer has had it."""
        with contextlib.suppress(ssl.SSLWantReadError):
            while data := self._secure.recv(_READ_BYTES):
                now = time.monotonic_ns()
                self._unread += data
                begin = 0
                while len(self._unread) >= begin + _HEAD_BYTES:
                    length, kind, flags, stream = _head(self._unread, begin)
                    end = begin + _HEAD_BYTES + length
                    if len(self._unread) < end:
                        break
                    payload = bytes(self._unread[begin + _HEAD_BYTES : end])
                    self._answer(kind, flags, payload)
                    yield now, kind, stream, payload
                    begin = end
                del self._unread[:begin]
            raise ConnectionError("the server has closed a connection")

    def _answer(self, kind: int, flags: int, payload: bytes) -> None:
        if kind in {http2.SETTINGS, http2.PING} and not flags & http2.ACK:
            self._secure.sendall(http2.frame(kind, http2.ACK, 0, payload if kind == http2.PING else b""))
        if kind in {http2.RST_STREAM, http2.GOAWAY} or (kind == http2.HEADERS and flags & http2.END_STREAM):
            raise ConnectionError(f"the server has ended a stream: {payload!r}")


def _head(data: bytearray, begin: int) -> tuple[int, int, int, int]:
    """A frame's length, kind, flags and stream (RFC 9113, 4.1)."""
    high, low, kind, flags, stream = struct.unpack_from(">BHBBI", data, begin)
    return high << 16 | low, kind, flags, stream & 0x7FFF_FFFF


def main(addr: str, method: str, ca: str, cert: str, key: str, request: str, *counts: str) -> None:
    count, stalled = map(int, counts)
    files = certs.Files(ca, cert, key)
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for begin in range(0, count + stalled, STREAMS_EACH):
            ours = range(begin, min(begin + STREAMS_EACH, count + stalled))
            taking = len(range(begin, min(ours.stop, count)))
            secure = stack.enter_context(http2.connection(addr, files, _SECONDS))
            selector.register(
                Connection(secure, method, bytes.fromhex(request), taking, len(ours) - taking),
                selectors.EVENT_READ,
            )
        selector.register(sys.stdin, selectors.EVENT_READ)
        _follow(selector, count)


def _follow(selector: selectors.BaseSelector, count: int) -> None:
    reached, latencies = set[tuple[Connection, int]](), list[int]()
    while True:
        for key, _ in selector.select():
            if isinstance(key.fileobj, Connection):
                for stream, took in key.fileobj.lines():
                    if len(reached) == count:
                        latencies.append(took)
                        continue
                    reached.add((key.fileobj, stream))
                    if len(reached) == count:
                        _say("")
            elif not sys.stdin.readline():
                return
            else:
                _say(" ".join(str(each // 1000) for each in latencies))
                latencies.clear()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])

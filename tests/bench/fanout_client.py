"""`python -m bench.fanout_client ADDR METHOD CA CERT KEY COUNT STALLED REQUEST...`: many followers at once.

COUNT follow the output of `bench.ticks`; STALLED more have asked for the same, and have a window for one byte.
The requests are theirs in turn. Says an empty line when each of the former has a line and each of the latter that
byte, so that the server waits with the rest; then, for each line of standard input, the latencies since the line
before, in microseconds. Ends in an error if more has come to one that has stalled.

It reads frames itself: with a call of grpc's for each follower, on a machine of two processors, the client would
be what is measured.
"""

from __future__ import annotations

import contextlib
import selectors
import ssl
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from bench.ticks import times
from support import certs, http2

STREAMS_EACH = 50
_SECONDS = 60.0
_READ_BYTES = 64 * 1024
# Of a stream that stalls. Not 0, for headers come before there is anything to wait with.
_WINDOW = 1


class Connection:
    """Streams of one connection, each with its request: those that take everything, then those that stall."""

    def __init__(self, secure: ssl.SSLSocket, method: str, requests: Sequence[bytes], taking: int) -> None:
        self._secure = secure
        self._unread = http2.Unread()
        streams = range(1, 1 + 2 * len(requests), 2)
        self._stalling = streams[taking:]
        self._received: Counter[int] = Counter()
        calls = [http2.frame(http2.WINDOW_UPDATE, payload=http2.OPEN)]
        for stream, request in zip(streams, requests, strict=True):
            calls.append(http2.request(stream, method, request))
            if stream not in self._stalling:
                calls.append(http2.frame(http2.WINDOW_UPDATE, 0, stream, http2.OPEN))
        secure.sendall(b"".join(calls))
        secure.setblocking(False)

    def fileno(self) -> int:
        return self._secure.fileno()

    def news(self) -> Iterator[tuple[int, int]]:
        """Of each line that has come: its stream, and how long it took, in nanoseconds.

        Of a stream that stalls: that it does, in no time.
        """
        for now, frame in self._frames():
            if frame.kind != http2.DATA or not frame.payload:
                continue
            if frame.stream in self._stalling:
                self._stall(frame)
                yield frame.stream, 0
            else:
                for written in times(frame.payload):
                    yield frame.stream, now - written

    def _stall(self, frame: http2.Frame) -> None:
        self._received[frame.stream] += len(frame.payload)
        if self._received[frame.stream] > _WINDOW:
            raise ConnectionError(f"{self._received[frame.stream]} bytes for a stream that was to stall")

    def _frames(self) -> Iterator[tuple[int, http2.Frame]]:
        """What has come, and when; what asks for an answer has had it."""
        with contextlib.suppress(ssl.SSLWantReadError):
            while data := self._secure.recv(_READ_BYTES):
                now = time.monotonic_ns()
                for frame in self._unread.frames(data):
                    self._secure.sendall(frame.answer())
                    if frame.kind in {http2.RST_STREAM, http2.GOAWAY} or _ends(frame):
                        raise ConnectionError(f"the server has ended a stream: {frame.payload!r}")
                    yield now, frame
            raise ConnectionError("the server has closed a connection")


def _ends(frame: http2.Frame) -> bool:
    return frame.kind == http2.HEADERS and bool(frame.flags & http2.END_STREAM)


def main(addr: str, method: str, ca: str, cert: str, key: str, *counts_and_requests: str) -> None:
    count, stalled = map(int, counts_and_requests[:2])
    requests = list(map(bytes.fromhex, counts_and_requests[2:]))
    asked = [requests[number % len(requests)] for number in range(count + stalled)]
    files = certs.Files(ca, cert, key)
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for begin in range(0, len(asked), STREAMS_EACH):
            taking = min(max(count - begin, 0), STREAMS_EACH)
            secure = stack.enter_context(http2.connection(addr, files, _SECONDS, window=_WINDOW))
            selector.register(
                Connection(secure, method, asked[begin : begin + STREAMS_EACH], taking), selectors.EVENT_READ
            )
        selector.register(sys.stdin, selectors.EVENT_READ)
        _follow(selector, len(asked))


def _follow(selector: selectors.BaseSelector, count: int) -> None:
    reached, latencies = set[tuple[Connection, int]](), list[int]()
    while True:
        for key, _ in selector.select():
            if isinstance(key.fileobj, Connection):
                for stream, took in key.fileobj.news():
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

"""A hostile client in a process of its own: has many streams of one log catch up, until its input ends.

It reads frames itself, and nothing in them, so that it takes what comes as fast as it can.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import ssl
import struct
import sys

from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import certs, http2
from support.flood import Flood, flooding

_STREAM = "/jobworker.api.v1.JobWorkerService/Stream"
_READ_BYTES, _READS, _HEAD_BYTES = 64 * 1024, 16, 9
# The largest window there is, less the one that each stream and connection begins with (RFC 9113, 6.9).
_WINDOW = struct.pack(">I", 2**31 - 1 - 65_535)
_SECONDS = 60.0


class Streams:
    """Calls of Stream on one connection.

    Attributes:
        frames: of data that have come; a small message is one.
    """

    def __init__(self, secure: ssl.SSLSocket, request: pb.StreamRequest, count: int) -> None:
        self._secure, self._unread = secure, bytearray()
        self.frames = 0
        message = request.SerializeToString()
        message = struct.pack(">BI", 0, len(message)) + message
        sent = [http2.frame(http2.WINDOW_UPDATE, payload=_WINDOW)]
        for stream in range(1, 1 + 2 * count, 2):
            sent.append(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, http2.call(_STREAM)))
            sent.append(http2.frame(http2.DATA, http2.END_STREAM, stream, message))
            sent.append(http2.frame(http2.WINDOW_UPDATE, 0, stream, _WINDOW))
        secure.sendall(b"".join(sent))
        secure.setblocking(False)

    def fileno(self) -> int:
        return self._secure.fileno()

    def take(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            # Each has one record of TLS whole, so what is left over is still to be selected for.
            for _ in range(_READS):
                if not (data := self._secure.recv(_READ_BYTES)):
                    raise ConnectionError("the server has closed a connection")
                self._unread += data
                self._go_over()

    def _go_over(self) -> None:
        begin = 0
        while len(self._unread) >= begin + _HEAD_BYTES:
            length, kind, flags = _head(self._unread, begin)
            end = begin + _HEAD_BYTES + length
            if len(self._unread) < end:
                break
            self.frames += kind == http2.DATA
            if kind in {http2.SETTINGS, http2.PING} and not flags & http2.ACK:
                payload = bytes(self._unread[begin + _HEAD_BYTES : end]) if kind == http2.PING else b""
                self._secure.sendall(http2.frame(kind, http2.ACK, 0, payload))
            begin = end
        del self._unread[:begin]


def _head(data: bytearray, begin: int) -> tuple[int, int, int]:
    """A frame's length, kind and flags (RFC 9113, 4.1)."""
    high, low, kind, flags = struct.unpack_from(">BHBB", data, begin)
    return high << 16 | low, kind, flags


def stream_flood(
    address: str, files: certs.Files, job_id: str, *, streams: int, connections: int = 1
) -> contextlib.AbstractContextManager[Flood]:
    """Have so many streams of a job's log on each of so many connections; begins when something has come."""
    return flooding("support.stream_flood", address, files.ca, files.cert, files.key, job_id, streams, connections)


def _main() -> None:
    address, ca, cert, key, job_id, streams, connections = sys.argv[1:]
    request = pb.StreamRequest(job_id=job_id, follow=True)
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        opened = []
        for _ in range(int(connections)):
            secure = stack.enter_context(http2.connection(address, certs.Files(ca, cert, key), _SECONDS))
            opened.append(Streams(secure, request, int(streams)))
            selector.register(opened[-1], selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        begun, over = False, False
        while not over:
            for ready, _ in selector.select():
                if isinstance(ready.fileobj, Streams):
                    ready.fileobj.take()
                else:
                    over = True
            if not begun and any(each.frames for each in opened):
                begun = True
                print("begun", flush=True)
    print(json.dumps({"OK": sum(each.frames for each in opened)}))


if __name__ == "__main__":
    _main()

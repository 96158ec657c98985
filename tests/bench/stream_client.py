"""`python -m bench.stream_client ADDR METHOD CA CERT KEY`: one follower, in a process of its own.

For each line of standard input, a request in hexadecimal, and `gzip` behind it where the answers are to be
compressed, it reads a whole stream and says how many bytes its messages had. They are not parsed, so that the
server is what limits the speed. The first line it says is empty: the connection is up.
"""

from __future__ import annotations

import sys

import grpc

from support import certs, gateway
from support.agent import DEADLINE


def main(addr: str, method: str, *files: str) -> None:
    with gateway.channel(addr, certs.Files(*files)) as channel:
        grpc.channel_ready_future(channel).result(DEADLINE)
        stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
        _say("")
        for line in sys.stdin:
            request, *compression = line.split()
            metadata = tuple(("jobworker-compression", name) for name in compression)
            _say(str(sum(len(message) for message in stream(bytes.fromhex(request), metadata=metadata))))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""`python -m bench.bare_server BYTES CA CERT KEY`: grpc.aio with mutual TLS that streams from memory, and no more.

Says its port on standard output and serves until standard input ends. `Stream` is asked for the size of a message
and for how much of them, both in bytes; so many BYTES of each size are in memory, made beforehand. `Ticks` sends
every follower the same line each PERIOD, until it leaves.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
from grpc import aio

from bench.ticks import tick
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.gateway.output import CHUNK_BYTES

_SERVICE = "bench.Bare"
STREAM, TICKS = "Stream", "Ticks"
# As the agent sends them, and smaller ones, as are more usual.
SIZES = (CHUNK_BYTES, 64 * 1024)
# Seconds.
PERIOD = 0.2


def method(name: str) -> str:
    """As a request names it."""
    return f"/{_SERVICE}/{name}"


class Memory:
    """So many bytes, as messages of each size."""

    def __init__(self, held: int) -> None:
        self._messages = {size: [_message(bytes(size)) for _ in range(held // size)] for size in SIZES}

    async def stream(self, request: bytes, context: aio.ServicerContext[Any, Any]) -> None:
        size, asked = map(int, request.split())
        for message in self._messages[size][: asked // size]:
            await context.write(message)


def _message(data: bytes) -> bytes:
    return pb.StreamResponse(chunk=pb.OutputChunk(data=data)).SerializeToString()


class Ticker:
    """Writes a line each period, and wakes whom it is for."""

    def __init__(self) -> None:
        self._message = b""
        self._news = asyncio.Event()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            self._message = _message(tick())
            self._news.set()
            self._news.clear()

    async def stream(self, _: bytes, context: aio.ServicerContext[Any, Any]) -> None:
        while await self._news.wait():
            await context.write(self._message)


async def main(held: str, *paths: str) -> None:
    ca, cert, key = map(_read, paths)
    server = aio.server(options=(("grpc.so_reuseport", 0),))
    # grpc's stubs know handlers that are not coroutines only.
    memory, ticker = Memory(int(held)), Ticker()
    methods: dict[str, Any] = {STREAM: memory.stream, TICKS: ticker.stream}
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.unary_stream_rpc_method_handler(answer) for name, answer in methods.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    credentials = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    ticking = asyncio.create_task(ticker.run())
    await asyncio.to_thread(sys.stdin.read)
    ticking.cancel()
    await server.stop(None)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

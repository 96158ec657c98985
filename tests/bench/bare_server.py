"""`python -m bench.bare_server CA CERT KEY`: grpc.aio with mutual TLS that streams from memory, and nothing else.

Says its port on standard output and serves until standard input ends. The request is the number of messages.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import grpc
from grpc import aio

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.gateway.output import CHUNK_BYTES

SERVICE, METHOD = "bench.Bare", "Stream"


async def _stream(request: bytes, context: aio.ServicerContext[Any, Any]) -> None:
    chunk = pb.OutputChunk(data=bytes(CHUNK_BYTES))
    message = pb.StreamResponse(chunk=chunk).SerializeToString()
    for _ in range(int(request)):
        await context.write(message)


async def main(paths: Sequence[str]) -> None:
    ca, cert, key = map(_read, paths)
    server = aio.server(options=(("grpc.so_reuseport", 0),))
    # grpc's stubs know handlers that are not coroutines only.
    handler: Any = _stream
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        METHOD: grpc.unary_stream_rpc_method_handler(handler)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    credentials = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))

"""A hostile client in a process of its own: keeps many calls under way, until its input ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from typing import TYPE_CHECKING

from jobworker import tls13

tls13.require()

from grpc import aio  # noqa: E402

from jobworker.api.v1 import job_worker_service_pb2 as pb  # noqa: E402
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub  # noqa: E402
from support import certs, gateway  # noqa: E402
from support.flood import Flood, flooding  # noqa: E402

if TYPE_CHECKING:
    # The types know it, the module does not.
    from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceAsyncStub

# Connections to one address are shared otherwise.
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


def call_flood(
    address: str, files: certs.Files, job_id: str, *, calls: int, connections: int = 1
) -> contextlib.AbstractContextManager[Flood]:
    """Flood an address with calls; begins when some have been answered.

    Args:
        address: HOST:PORT.
        files: who it is.
        job_id: what it asks for.
        calls: so many Queries are under way on each connection.
        connections: so many.
    """
    return flooding("support.call_flood", address, files.ca, files.cert, files.key, job_id, calls, connections)


async def _flood(address: str, files: certs.Files, job_id: str, calls: int, connections: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    credentials, query = gateway.credentials(files), pb.QueryRequest(job_id=job_id)
    over = asyncio.Event()

    async def call_all_the_time(service: JobWorkerServiceAsyncStub) -> None:
        while not over.is_set():
            try:
                await service.Query(query)
                counts["OK"] += 1
            except aio.AioRpcError as error:
                counts[error.code().name] += 1
            if counts.total() == calls:
                print("begun", flush=True)

    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            channel = await stack.enter_async_context(aio.secure_channel(address, credentials, _OWN_CONNECTION))
            await channel.channel_ready()
            service = JobWorkerServiceStub(channel)
            for _ in range(calls):
                tasks.create_task(call_all_the_time(service))
        await asyncio.to_thread(sys.stdin.read)
        over.set()
    return counts


def _main() -> None:
    address, ca, cert, key, job_id, calls, connections = sys.argv[1:]
    files = certs.Files(ca, cert, key)
    print(json.dumps(asyncio.run(_flood(address, files, job_id, int(calls), int(connections)))))


if __name__ == "__main__":
    _main()

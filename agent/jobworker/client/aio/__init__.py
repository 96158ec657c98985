"""The Python client of an agent for asyncio: the same calls as `jobworker.client`, awaited.

from jobworker.client import Endpoint, aio

async with aio.connect(Endpoint("agent.example.org:7443", "ca.pem", "writer.pem", "writer.key")) as client:
    job = await client.start(JobSpec("make", ("all",)))
    async for item in client.stream(job.id, follow=True):
        ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobworker.client.endpoint import Endpoint
from jobworker.client.options import Options

if TYPE_CHECKING:
    from jobworker.client.aio.client import AsyncClient

__all__ = ["connect"]


def connect(
    endpoint: Endpoint,
    timeout: float = 30.0,
    connect_timeout: float = 5.0,
    request_id: str = "",
    traceparent: str = "",
) -> AsyncClient:
    """A client of the agent at this endpoint, for the event loop that runs; it connects with the first call.

    Arguments and errors are those of `jobworker.client.connect`.

    Raises:
        RuntimeError: no event loop runs.
    """
    from jobworker.client.aio.client import AsyncClient  # noqa: PLC0415 - grpc takes 100 ms to import

    return AsyncClient(endpoint, Options(timeout, connect_timeout, request_id, traceparent))

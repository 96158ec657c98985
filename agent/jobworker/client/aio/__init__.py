"""The Python client of an agent for asyncio: the same calls as `jobworker.client`, awaited.

from jobworker.client import Endpoint, aio

async with aio.connect(Endpoint("agent.example.org:7443", "ca.pem", "writer.pem", "writer.key")) as client:
    job = await client.start(JobSpec("make", ("all",)))
    async for item in client.stream(job.id, follow=True):
        ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobworker import tls13
from jobworker.client.endpoint import Endpoint

if TYPE_CHECKING:
    from jobworker.client.aio.client import AsyncClient

__all__ = ["connect"]

tls13.require()


def connect(
    endpoint: Endpoint,
    timeout: float = 30.0,
    connect_timeout: float = 5.0,
    request_id: str = "",
    traceparent: str = "",
) -> AsyncClient:
    """A client of the agent at this endpoint, for the event loop that runs; it connects with the first call.

    Args:
        endpoint: the agent, and the files for mutual TLS with it.
        timeout: for each call that is not a stream of answers, in seconds.
        connect_timeout: for a connection to come about, in seconds.
        request_id: by which the agent's log, its audit trail and its jobs' records name all calls; empty for one
            of its own for each.
        traceparent: the span that calls belong to, as W3C Trace Context writes it; one of OpenTelemetry's that is
            current goes before it.

    Raises:
        InvalidField: the address is not HOST:PORT, or the id of requests or the span is none.
        TlsProblem: with these files no connection can come about.
        RuntimeError: no event loop runs, or grpc was imported before, in a way that would let it speak TLS 1.2.
    """
    from jobworker.client.aio.client import AsyncClient  # noqa: PLC0415 - grpc takes 100 ms to import

    return AsyncClient(endpoint, timeout, connect_timeout, request_id, traceparent)

"""The Python client of an agent.

    from jobworker.client import Endpoint, connect

    with connect(Endpoint("agent.example.org:7443", "ca.pem", "writer.pem", "writer.key")) as client:
        job = client.start(JobSpec("make", ("all",)))
        for item in client.stream(job.id, follow=True):
            ...

`connect` is the only part that imports grpc, so that a command that needs no agent starts at once.
`jobworker.client.aio` has the same for asyncio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobworker import tls13
from jobworker.client.endpoint import Endpoint
from jobworker.client.options import Options

if TYPE_CHECKING:
    from jobworker.client.rpc.client import Client

__all__ = ["Endpoint", "connect"]

# Now rather than with the first client: between the two, others may import grpc.
tls13.require()


def connect(
    endpoint: Endpoint,
    timeout: float = 30.0,
    connect_timeout: float = 5.0,
    request_id: str = "",
    traceparent: str = "",
) -> Client:
    """A client of the agent at this endpoint; the connection comes about with the first call.

    What the other arguments mean stands at `jobworker.client.options.Options`.

    Raises:
        InvalidField: the address is not HOST:PORT, or the id of requests or the span is none.
        TlsProblem: with these files no connection can come about.
        ForkedClient: this process was forked from one that had made a client.
        RuntimeError: grpc was imported before, in a way that would let it speak TLS 1.2.
    """
    from jobworker.client.rpc.client import Client  # noqa: PLC0415 - grpc takes 100 ms to import

    return Client(endpoint, Options(timeout, connect_timeout, request_id, traceparent))

"""A collector of traces, as OpenTelemetry's exporters send them: OTLP over gRPC."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as api
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from support.waiting import until

_DEADLINE = 60


class Collector(api.TraceServiceServicer):
    """Keeps what it is sent.

    Attributes:
        requests: as they came.
        headers: of the last one.
        address: HOST:PORT, once it serves.
    """

    def __init__(self) -> None:
        self.requests: list[service.ExportTraceServiceRequest] = []
        self.headers: dict[str, str] = {}
        self.address = ""

    def Export(  # noqa: N802 - its name in the contract
        self, request: service.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> service.ExportTraceServiceResponse:
        self.headers = {str(key): str(value) for key, value in context.invocation_metadata()}
        self.requests.append(request)
        return service.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def of_trace(self, trace_id: str, number: int) -> dict[str, Span]:
        """The spans of a trace by the ends of their names, once there are so many."""

        def found() -> list[Span]:
            return [span for span in self.spans if span.trace_id.hex() == trace_id]

        until(lambda: len(found()), number, _DEADLINE)
        return {span.name.rpartition("/")[2]: span for span in found()}

    def of_request(self, request_id: str) -> Span:
        """The one span of a call, once it is there."""

        def found() -> list[Span]:
            return [span for span in self.spans if attributes(span).get("jobworker.request_id") == request_id]

        until(lambda: len(found()), 1, _DEADLINE)
        return found()[0]


def attributes(span: Span) -> dict[str, str | int | bool]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value") for each in span.attributes
    }


@contextlib.contextmanager
def collector(address: str = "127.0.0.1:0") -> Iterator[Collector]:
    """A collector that listens there."""
    server, collecting = grpc.server(ThreadPoolExecutor(2)), Collector()
    api.add_TraceServiceServicer_to_server(collecting, server)  # type: ignore[no-untyped-call] # has no types
    collecting.address = f"127.0.0.1:{server.add_insecure_port(address)}"
    server.start()
    try:
        yield collecting
    finally:
        server.stop(None).wait()

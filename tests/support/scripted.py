"""A real gRPC server over mutual TLS that answers as a test tells it to, and a wire to it that breaks."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, message_factory
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped] # has no types
from grpc_status import rpc_status  # type: ignore[import-untyped] # likewise

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client import Endpoint
from support import certs

_SERVICE = pb.DESCRIPTOR.services_by_name["JobWorkerService"]

# By whether requests, and answers, are streams.
_MAKE: dict[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}

Handler = Callable[[Any, grpc.ServicerContext], Any]


def program() -> str:
    """The installed worker-client."""
    return os.path.join(sysconfig.get_path("scripts"), "worker-client")


class ScriptedAgent:
    """Answers each method by the handler that a test gives it; keeps what was asked."""

    def __init__(self, server: certs.Pair | None = None, host: str = "127.0.0.1") -> None:
        """Start it, with the certificate of the development PKI's server or another one."""
        self._host = host
        self.handlers: dict[str, Handler] = {}
        self.requests: list[Any] = []
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(_SERVICE.full_name, dict(self._methods()))]
        )
        self.port = self._server.add_secure_port(f"{host}:0", _credentials(server))
        self._server.start()

    def endpoint(self, port: int | None = None, name: str = "writer") -> Endpoint:
        files = certs.dev_pki().files(name)
        return Endpoint(f"{self._host}:{port or self.port}", files.ca, files.cert, files.key)

    def command(self, *args: str | bytes, name: str = "writer") -> list[str | bytes]:
        """A command line of worker-client with the flags that it needs to reach this agent."""
        it = self.endpoint(name=name)
        return [program(), "--addr", it.addr, "--ca", it.ca, "--cert", it.cert, "--key", it.key, *args]

    def cli(self, *args: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run worker-client to its end."""
        return subprocess.run(self.command(*args), capture_output=True, timeout=60, check=False, **options)

    def close(self) -> None:
        self._server.stop(None).wait()

    def _methods(self) -> Iterator[tuple[str, grpc.RpcMethodHandler[Any, Any]]]:
        for method in _SERVICE.methods:
            make = _MAKE[method.client_streaming, method.server_streaming]
            decode = message_factory.GetMessageClass(method.input_type).FromString
            encode = message_factory.GetMessageClass(method.output_type).SerializeToString
            yield method.name, make(partial(self._handle, method.name), decode, encode)

    def _handle(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        return self.handlers[method](request, context)


@contextlib.contextmanager
def scripted_agent(server: certs.Pair | None = None) -> Iterator[ScriptedAgent]:
    agent = ScriptedAgent(server)
    try:
        yield agent
    finally:
        agent.close()


def fail(context: grpc.ServicerContext, code: str, reason: str, message: str, **fields: str) -> NoReturn:
    """End a call as the gateway does, with a rich status."""
    _abort(context, code, message, error_details_pb2.ErrorInfo(reason=reason, metadata=fields))


def refuse_field(context: grpc.ServicerContext, field: str, problem: str) -> NoReturn:
    """End a call as the gateway does for a wrong field of its request."""
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=problem)
    details = (
        error_details_pb2.ErrorInfo(reason="INVALID_FIELD", metadata={"field": field}),
        error_details_pb2.BadRequest(field_violations=[violation]),
    )
    _abort(context, "INVALID_ARGUMENT", f"{field}: {problem}", *details)


def refuse_quota(context: grpc.ServicerContext, message: str, retry_ms: int) -> NoReturn:
    """End a call as the gateway does for a caller that has too much; without a delay to try again after if 0."""
    fields = {"quota": "calls", "limit": "1", "present": "1", "retry_ms": str(retry_ms)}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason="QUOTA_EXCEEDED", metadata=fields)]
    if retry_ms:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(retry_ms)
        details.append(retry)
    _abort(context, "RESOURCE_EXHAUSTED", message, *details)


def _abort(context: grpc.ServicerContext, code: str, message: str, *details: Message) -> NoReturn:
    packed = [any_pb2.Any() for _ in details]
    for box, detail in zip(packed, details, strict=True):
        box.Pack(detail)
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message, details=packed)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort raises")


def chunk(
    offset: int, data: bytes, source: pb.OutputSource.ValueType = pb.OUTPUT_SOURCE_UNSPECIFIED
) -> pb.StreamResponse:
    return pb.StreamResponse(chunk=pb.OutputChunk(offset=offset, data=data, source=source))


def end(offset: int, *, output_ended: bool = True) -> pb.StreamResponse:
    return pb.StreamResponse(end=pb.OutputEnd(offset=offset, output_ended=output_ended))


class Wire:
    """Carries connections to a port, each until it has brought so many bytes back.

    Attributes:
        target: the port; it may be changed.
        port: where to connect to instead.
        connections: how many there have been.
        brought: bytes that they have brought back.
    """

    def __init__(self, port: int, budgets: Iterator[int]) -> None:
        self.target = port
        self._budgets = budgets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.brought = 0
        self._near: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # A blocked accept() is not ended by close().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def cut(self) -> None:
        """Break off all connections, behind which nobody listens any more."""
        self.close()
        for near in self._near:
            with contextlib.suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)

    def _connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.target))

    def _count(self, size: int) -> None:
        self.brought += size

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.connections += 1
                self._near.append(near)
                threading.Thread(target=self._serve, args=(near, next(self._budgets)), daemon=True).start()

    def _serve(self, near: socket.socket, budget: int) -> None:
        with near, contextlib.suppress(ConnectionRefusedError), self._connected() as far:
            back = threading.Thread(target=_carry, args=(far, near, budget, self._count), daemon=True)
            back.start()
            _carry(near, far, sys.maxsize)
            back.join()


def _carry(
    source: socket.socket, target: socket.socket, budget: int, count: Callable[[int], None] = lambda _: None
) -> None:
    """Carry up to so many bytes, then break the connection off in both directions."""
    with contextlib.suppress(OSError):
        while budget and (data := source.recv(min(budget, 65_536))):
            count(len(data))
            target.sendall(data)
            budget -= len(data)
    for sock in (source, target):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def breaking_wire(port: int, budgets: Iterator[int]) -> Iterator[Wire]:
    """A wire whose nth connection brings back the nth number of bytes, handshake included."""
    wire = Wire(port, budgets)
    try:
        yield wire
    finally:
        wire.close()


def _credentials(server: certs.Pair | None) -> grpc.ServerCredentials:
    pki = certs.dev_pki()
    pair = server or pki.pair("server")
    with open(pki.path("ca.pem"), "rb") as file:
        ca = file.read()
    with open(pki.path("server.pem"), "rb") as file:
        chain = server.cert_pem if server else file.read()
    return grpc.ssl_server_credentials([(pair.key_pem, chain)], ca, require_client_auth=True)

"""A gRPC channel to one agent, and what its failures mean."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.client import tls
from jobworker.client.endpoint import Endpoint, check_addr
from jobworker.client.failures import CallFailed
from jobworker.client.rpc.backoff import Backoff
from jobworker.client.rpc.status import failure_of
from jobworker.errors import JobWorkerError

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Metadata: TypeAlias = tuple[tuple[str, str], ...]

_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.name
_DRAINING = "AGENT_DRAINING"
_ONCE = Backoff(attempts=0)
_QUOTA = "QUOTA_EXCEEDED"
# On top of what the agent says: all that were refused are told the same.
_TURNS = Backoff(attempts=8, first=0.1, longest=1.0)

# A page of 100 jobs whose arguments are as long as they may be.
_MAX_RECEIVE = 32 * 1024 * 1024
# Despite its name also the time that a connection has to come about; by default 20 s.
_ATTEMPT = "grpc.min_reconnect_backoff_ms"
# With the bandwidth probe on, fifty stalled streams let a client grow to 1.6 GB.
_LOOKAHEAD = 1024 * 1024

_REQUEST_ID = "x-request-id"
_COMPRESSED = ("jobworker-compression", "gzip")

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", _LOOKAHEAD),
    ("grpc.max_receive_message_length", _MAX_RECEIVE),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # The agent is named by its address alone: no proxy, and no call policy from a TXT record.
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
)


class Connection:
    """A channel to one agent; several threads may use it."""

    def __init__(self, endpoint: Endpoint, connect_timeout: float, request_id: str = "") -> None:
        """Prepare the channel; nothing is sent before the first call.

        Args:
            endpoint: the agent, and the files for mutual TLS with it.
            connect_timeout: for a connection to come about, in seconds.
            request_id: of all calls; empty for one of its own for each, which further attempts share.

        Raises:
            InvalidField: the address is not HOST:PORT.
            TlsProblem: with these files no connection can come about.
        """
        options: list[tuple[str, int | str]] = [*_OPTIONS, (_ATTEMPT, round(connect_timeout * 1000))]
        if endpoint.server_name:
            options.append(("grpc.ssl_target_name_override", endpoint.server_name))
        self._endpoint, self._connect_timeout, self._request_id = endpoint, connect_timeout, request_id
        self._channel = grpc.secure_channel(check_addr(endpoint.addr), tls.credentials(endpoint), options)
        self.stub = JobWorkerServiceStub(self._channel)
        self._answered = False

    def close(self) -> None:
        """End the connection, and with it the calls that are under way."""
        self._channel.close()

    def reach(self) -> None:
        """Have the connection come about now, rather than with the first call.

        Raises:
            JobWorkerError: it does not: TlsProblem, or CallFailed where the cause cannot be seen from here.
        """
        deadline = time.monotonic() + self._connect_timeout
        try:
            self._once(self.stub.GetAgentInfo, pb.GetAgentInfoRequest(), deadline, self._new_request_id())
        except CallFailed:
            # Who refuses to tell has been reached.
            if not self._answered:
                raise

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float,
        backoff: Backoff = _ONCE,
    ) -> Response:
        """The answer to a request.

        Args:
            method: of `stub`.
            request: what to ask.
            timeout: for everything together, in seconds.
            backoff: further attempts while the agent is UNAVAILABLE; for idempotent methods only. What is refused
                for coming too fast was not done: that is tried again, whatever the method, when the agent says.

        Raises:
            JobWorkerError: CallFailed, or TlsProblem where the connection never worked.
        """
        deadline = time.monotonic() + timeout
        pauses, turns = backoff.pauses(), _TURNS.pauses()
        request_id = self._new_request_id()
        while True:
            try:
                return self._once(method, request, deadline, request_id)
            except CallFailed as failure:
                pause = _turn(failure, turns)
                # Who drains an agent means it to stay so.
                if failure.code == _UNAVAILABLE and failure.reason != _DRAINING:
                    pause = next(pauses, None)
                if pause is None or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)

    def _new_request_id(self) -> str:
        return self._request_id or os.urandom(8).hex()

    def _once(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        deadline: float,
        request_id: str,
    ) -> Response:
        left, metadata = max(0.0, deadline - time.monotonic()), ((_REQUEST_ID, request_id),)
        try:
            response = method(request, timeout=left, metadata=metadata)
        except (grpc.RpcError, ValueError) as error:
            raise self._failure(error, request_id) from None
        self._answered = True
        return response

    def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        timeout: float | None = None,
        *,
        compress: bool = False,
    ) -> Iterator[Response]:
        """The answers to a request, compressed on their way if that is asked for.

        The call ends with the iterator, or after `timeout` seconds if that is given.

        One that is refused for coming too fast is made again when the agent says.

        Raises:
            JobWorkerError: as `call`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        request_id = self._new_request_id()
        metadata = ((_REQUEST_ID, request_id), *((_COMPRESSED,) if compress else ()))
        turns = _TURNS.pauses()
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                yield from self._answers(method, request, left, metadata, request_id)
            except CallFailed as failure:
                pause = _turn(failure, turns)
                if pause is None or (deadline is not None and time.monotonic() + pause > deadline):
                    raise
                time.sleep(pause)
            else:
                return

    def _answers(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        timeout: float | None,
        metadata: Metadata,
        request_id: str,
    ) -> Iterator[Response]:
        try:
            responses = method(request, timeout=timeout, metadata=metadata)
            try:
                for response in responses:
                    self._answered = True
                    yield response
            finally:
                responses.cancel()
        except (grpc.RpcError, ValueError) as error:
            raise self._failure(error, request_id) from None

    def _failure(self, error: grpc.RpcError | ValueError, request_id: str) -> JobWorkerError:
        if isinstance(error, ValueError):
            # So grpc says that another thread has closed the channel.
            return CallFailed(grpc.StatusCode.CANCELLED.name, "the connection was closed")
        failure, agent = failure_of(error, request_id), f"the agent at {self._endpoint.addr}"
        if failure.reason:
            self._answered = True
            return failure
        if failure.code == grpc.StatusCode.DEADLINE_EXCEEDED.name:
            return replace(failure, message=f"{agent} did not answer in time")
        if failure.code != _UNAVAILABLE:
            return failure
        problem = None if self._answered else tls.diagnose(self._endpoint)
        return problem or replace(failure, message=f"cannot reach {agent}: {failure.message}")


def _turn(failure: CallFailed, turns: Iterator[float]) -> float | None:
    """How long to wait until what came too fast may come again, in seconds; None for any other failure."""
    if failure.reason != _QUOTA or not failure.retry_seconds or (spread := next(turns, None)) is None:
        return None
    return failure.retry_seconds + spread

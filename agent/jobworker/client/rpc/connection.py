"""A gRPC channel to one agent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import grpc

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client import tls
from jobworker.client.endpoint import Endpoint
from jobworker.client.failures import CallFailed
from jobworker.client.options import Options
from jobworker.client.rpc import channel
from jobworker.client.rpc.calls import Call
from jobworker.client.rpc.channels import Channels, Line, Outdated
from jobworker.client.rpc.retries import Retries
from jobworker.errors import JobWorkerError

Result = TypeVar("Result")

# In which grpc's own thread tells how a channel is, in seconds; it takes one thousandth.
_MOMENT = 1.0


class Connection:
    """A channel to one agent; several threads may use it."""

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        """Prepare the channel; nothing is sent before the first call.

        Args:
            endpoint: the agent, and the files for mutual TLS with it.
            options: how calls are made.

        Raises:
            InvalidField: the address is not HOST:PORT.
            TlsProblem: with these files no connection can come about.
            ForkedClient: none can in this process.
        """
        self._endpoint, self._options = endpoint, options
        self._channels = Channels(endpoint, options, grpc.secure_channel)
        self._failures = channel.Failures(endpoint)

    def close(self) -> None:
        """End the connection, and with it the calls that are under way."""
        for each in self._channels.close():
            each.close()

    def reach(self) -> None:
        """Have the connection come about now, rather than with the first call.

        Raises:
            JobWorkerError: it does not: TlsProblem, or CallFailed where the cause cannot be seen from here.
        """
        deadline = channel.reach_deadline(self._options)
        try:
            self._once("GetAgentInfo", pb.GetAgentInfoRequest(), deadline, self._new_request_id())
        except CallFailed:
            # Who refuses to tell has been reached.
            if not self._failures.answered:
                raise

    def make(self, call: Call[Result]) -> Result:
        """Make a call, again where that is safe; what it came to.

        Args:
            call: what to ask, and how to read the answer.

        Raises:
            JobWorkerError: CallFailed, or TlsProblem where the connection never worked.
        """
        deadline = time.monotonic() + self._options.timeout + call.more_seconds
        retries, request_id = Retries(call.backoff, deadline), self._new_request_id()
        while True:
            try:
                return call.read(self._once(call.method, call.request, deadline, request_id))
            except Outdated:
                continue
            except CallFailed as failure:
                pause = retries.pause(failure)
            time.sleep(pause)

    def _new_request_id(self) -> str:
        return self._options.request_id or channel.new_request_id()

    def _once(self, method: str, request: Any, deadline: float, request_id: str) -> Any:
        metadata = channel.metadata(request_id, self._options.traceparent)
        with self._taken() as line:
            try:
                response = getattr(line.stub, method)(request, timeout=channel.left(deadline), metadata=metadata)
            except (grpc.RpcError, ValueError) as error:
                raise self._failure(error, request_id, deadline, line) from None
        self._failures.answered = True
        return response

    def stream(
        self, method: str, request: Any, deadline: float = math.inf, *, compress: bool = False
    ) -> Iterator[Any]:
        """The answers to a request, compressed on their way if that is asked for.

        The call ends with the iterator, or at `deadline` on the monotonic clock.

        One that is refused for coming too fast is made again when the agent says.

        Raises:
            JobWorkerError: as `make`.
        """
        request_id, retries = self._new_request_id(), Retries(deadline=deadline)
        while True:
            try:
                yield from self.answers(method, request, deadline, compress=compress, request_id=request_id)
            except CallFailed as failure:
                time.sleep(retries.pause(failure))
            else:
                return

    def answers(
        self,
        method: str,
        requests: Any,
        deadline: float = math.inf,
        *,
        compress: bool = False,
        request_id: str = "",
        opened: Callable[[Callable[[], object]], None] = lambda _: None,
    ) -> Iterator[Any]:
        """The answers of one call: to a request or, where the method takes several, to an iterator of them.

        Another thread than the one that waits for them can end the call with what `opened` is given.

        Raises:
            JobWorkerError: as `make`.
        """
        request_id = request_id or self._new_request_id()
        metadata = channel.metadata(request_id, self._options.traceparent, compress=compress)
        with self._taken() as line:
            try:
                responses = getattr(line.stub, method)(requests, timeout=channel.left(deadline), metadata=metadata)
                try:
                    opened(responses.cancel)
                    for response in responses:
                        self._failures.answered = True
                        yield response
                finally:
                    responses.cancel()
            except (grpc.RpcError, ValueError) as error:
                raise self._failure(error, request_id, deadline, line) from None

    @contextmanager
    def _taken(self) -> Iterator[Line[grpc.Channel]]:
        line = self._channels.take()
        try:
            yield line
        finally:
            for each in self._channels.give_back(line):
                each.close()

    def _failure(
        self, error: grpc.RpcError | ValueError, request_id: str, deadline: float, line: Line[grpc.Channel]
    ) -> JobWorkerError:
        failure = self._channels.judged(self._failures.read(error, request_id), line)
        if not self._failures.is_unexplained(failure, partial(_state, line.channel)):
            return failure
        return tls.diagnose(self._endpoint, channel.look_seconds(self._options, deadline)) or failure


def _state(of: grpc.Channel) -> grpc.ChannelConnectivity:
    """How a channel is now; one that has been closed says nothing."""
    told: SimpleQueue[grpc.ChannelConnectivity] = SimpleQueue()
    tell = told.put
    of.subscribe(tell)
    try:
        return told.get(timeout=_MOMENT)
    except Empty:
        return grpc.ChannelConnectivity.SHUTDOWN
    finally:
        of.unsubscribe(tell)

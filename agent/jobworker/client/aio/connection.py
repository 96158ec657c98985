"""A gRPC channel to one agent, in an event loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import grpc
from grpc import aio

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

# What grpc raises: all but the first when the channel has been closed.
_ERRORS = (grpc.RpcError, aio.UsageError, asyncio.InvalidStateError, asyncio.CancelledError)


class Connection:
    """A channel to one agent, of the event loop that it is made in."""

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        """Prepare the channel; nothing is sent before the first call. See `rpc.connection.Connection`."""
        asyncio.get_running_loop()
        self._endpoint, self._options = endpoint, options
        self._channels = Channels(endpoint, options, aio.secure_channel)
        self._failures = channel.Failures(endpoint)
        self._closed = False

    async def close(self) -> None:
        """End the connection, and with it the calls that are under way."""
        self._closed = True
        for each in self._channels.close():
            await each.close()

    async def reach(self) -> None:
        """Have the connection come about now, rather than with the first call.

        Raises:
            JobWorkerError: it does not: TlsProblem, or CallFailed where the cause cannot be seen from here.
        """
        deadline = channel.reach_deadline(self._options)
        try:
            await self._once("GetAgentInfo", pb.GetAgentInfoRequest(), deadline, self._new_request_id())
        except CallFailed:
            # Who refuses to tell has been reached.
            if not self._failures.answered:
                raise

    async def make(self, call: Call[Result]) -> Result:
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
                return call.read(await self._once(call.method, call.request, deadline, request_id))
            except Outdated:
                continue
            except CallFailed as failure:
                pause = retries.pause(failure)
            await asyncio.sleep(pause)

    def _new_request_id(self) -> str:
        return self._options.request_id or channel.new_request_id()

    async def _once(self, method: str, request: Any, deadline: float, request_id: str) -> Any:
        metadata = channel.metadata(request_id, self._options.traceparent)
        async with self._taken() as line:
            try:
                response = await getattr(line.stub, method)(
                    request, timeout=channel.left(deadline), metadata=metadata
                )
            except _ERRORS as error:
                raise await self._failure(error, request_id, deadline, line) from None
        self._failures.answered = True
        return response

    async def stream(
        self,
        method: str,
        request: Any,
        deadline: float = math.inf,
        *,
        compress: bool = False,
    ) -> AsyncGenerator[Any, None]:
        """The answers to a request; see `rpc.connection.Connection.stream`.

        Raises:
            JobWorkerError: as `make`.
        """
        request_id, retries = self._new_request_id(), Retries(deadline=deadline)
        while True:
            try:
                async with aclosing(
                    self.answers(method, request, deadline, compress=compress, request_id=request_id)
                ) as answers:
                    async for response in answers:
                        yield response
            except CallFailed as failure:
                pause = retries.pause(failure)
            else:
                return
            await asyncio.sleep(pause)

    async def answers(
        self,
        method: str,
        requests: Any,
        deadline: float = math.inf,
        *,
        compress: bool = False,
        request_id: str = "",
    ) -> AsyncGenerator[Any, None]:
        """The answers of one call: to a request or, where the method takes several, to an iterator of them.

        Raises:
            JobWorkerError: as `make`.
        """
        request_id = request_id or self._new_request_id()
        metadata = channel.metadata(request_id, self._options.traceparent, compress=compress)
        async with self._taken() as line:
            try:
                call = getattr(line.stub, method)(requests, timeout=channel.left(deadline), metadata=metadata)
                try:
                    async for response in call:
                        self._failures.answered = True
                        yield response
                finally:
                    call.cancel()
            except _ERRORS as error:
                raise await self._failure(error, request_id, deadline, line) from None

    @asynccontextmanager
    async def _taken(self) -> AsyncIterator[Line[aio.Channel]]:
        line = self._channels.take()
        try:
            yield line
        finally:
            for each in self._channels.give_back(line):
                await each.close()

    async def _failure(
        self, error: BaseException, request_id: str, deadline: float, line: Line[aio.Channel]
    ) -> JobWorkerError:
        if isinstance(error, asyncio.CancelledError) and not self._ended_by_close():
            raise error
        failure = self._channels.judged(self._failures.read(error, request_id), line)
        if not self._failures.is_unexplained(failure, line.channel.get_state):
            return failure
        # It connects and waits.
        seconds = channel.look_seconds(self._options, deadline)
        return await asyncio.to_thread(tls.diagnose, self._endpoint, seconds) or failure

    def _ended_by_close(self) -> bool:
        """A call was cancelled with the channel, rather than the task that waits for it."""
        task = asyncio.current_task()
        return self._closed and task is not None and not task.cancelling()

"""What any channel to an agent is made with, and what its errors mean."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace

import grpc

from jobworker.client import tracecontext
from jobworker.client.endpoint import Endpoint
from jobworker.client.failures import CallFailed
from jobworker.client.options import Options
from jobworker.client.rpc.retries import UNAVAILABLE
from jobworker.client.rpc.status import failure_of

_REQUEST_ID = "x-request-id"
# Has the agent compress a stream's answers.
_COMPRESSED = ("jobworker-compression", "gzip")

# A page of 100 jobs whose arguments are as long as they may be.
_MAX_RECEIVE = 32 * 1024 * 1024
# Despite its name also the time that a connection has to come about; by default 20 s.
_ATTEMPT = "grpc.min_reconnect_backoff_ms"
# What grpc takes of that, in seconds: its number of milliseconds has 32 bits.
_LONGEST_ATTEMPT = 1e6
# To find out why there is no connection, in seconds.
_LONGEST_LOOK = 5.0
# In seconds: of much more grpc's clock makes a time that has passed.
_LONGEST = 1e8
# With the bandwidth probe on, fifty stalled streams let a client grow to 1.6 GB.
_LOOKAHEAD = 1024 * 1024

_ARGUMENTS: tuple[tuple[str, int], ...] = (
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


def arguments(endpoint: Endpoint, options: Options) -> list[tuple[str, int | str]]:
    """What grpc calls the options of a channel."""
    attempt = min(options.connect_timeout, _LONGEST_ATTEMPT)
    made: list[tuple[str, int | str]] = [*_ARGUMENTS, (_ATTEMPT, round(attempt * 1000))]
    if endpoint.server_name:
        made.append(("grpc.ssl_target_name_override", endpoint.server_name))
    return made


def left(deadline: float) -> float | None:
    """The seconds until then on the monotonic clock, as grpc takes them; None, for no limit, if very many."""
    seconds = max(0.0, deadline - time.monotonic())
    return seconds if seconds <= _LONGEST else None


def look_seconds(options: Options, deadline: float) -> float:
    """For how long to look why a call found no connection: no longer than that may take, and the call itself."""
    return min(_LONGEST_LOOK, options.connect_timeout, deadline - time.monotonic())


def reach_deadline(options: Options) -> float:
    """Until when, on the monotonic clock, a connection has to come about, or why it does not to be found out."""
    return time.monotonic() + options.connect_timeout + look_seconds(options, math.inf)


def new_request_id() -> str:
    """What names one call, and further attempts at it."""
    return os.urandom(8).hex()


def metadata(request_id: str, traceparent: str, *, compress: bool = False) -> tuple[tuple[str, str], ...]:
    """A call's metadata.

    Args:
        request_id: what it is called.
        traceparent: the span that it belongs to where none of the program's own is current; empty for none.
        compress: have its answers compressed.
    """
    traced = tracecontext.current() or traceparent
    return (
        (_REQUEST_ID, request_id),
        *(((tracecontext.KEY, traced),) if traced else ()),
        *((_COMPRESSED,) if compress else ()),
    )


class Failures:
    """Makes of a channel's errors what callers are told.

    Attributes:
        answered: the agent has been heard over this channel.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._agent = f"the agent at {endpoint.addr}"
        self._connected = False
        self.answered = False

    def read(self, error: BaseException, request_id: str) -> CallFailed:
        """What an error of the call of this name means."""
        if not isinstance(error, grpc.RpcError):
            # A ValueError of threads, a UsageError or CancelledError of asyncio: so grpc says that the channel has
            # been closed.
            return CallFailed(grpc.StatusCode.CANCELLED.name, "the connection was closed")
        failure = failure_of(error, request_id)
        if failure.reason:
            self.answered = True
            return failure
        if failure.code == grpc.StatusCode.DEADLINE_EXCEEDED.name:
            return replace(failure, message=f"{self._agent} did not answer in time")
        if failure.code == UNAVAILABLE:
            return replace(failure, message=f"cannot reach {self._agent}: {failure.message}")
        return failure

    def is_unexplained(self, failure: CallFailed, state: Callable[[], grpc.ChannelConnectivity]) -> bool:
        """No connection ever came about, and grpc does not tell why: it is worth looking closely.

        Args:
            failure: what has become of a call.
            state: tells how the channel is now.
        """
        if failure.code != UNAVAILABLE or failure.reason or self.answered:
            return False
        # What was sent over a connection that then broke may have got through, though nothing was answered. grpc
        # has such a channel idle, and only one that could not connect failed.
        self._connected = self._connected or state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE
        return not self._connected

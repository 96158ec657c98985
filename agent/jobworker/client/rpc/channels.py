"""The channels of one connection: a new one whenever the client's files have changed.

A channel keeps to what its files said when it was made, and a user's certificate lives a day. Calls that are under
way go on over the channel before, until they end; new ones, and further attempts, are made over the new one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import grpc
from grpc import aio

from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.client import tls
from jobworker.client.endpoint import Endpoint, check_addr
from jobworker.client.failures import CallFailed
from jobworker.client.options import Options
from jobworker.client.rpc import channel, forks
from jobworker.client.rpc.retries import UNAVAILABLE
from jobworker.errors import TlsProblem

Kind = TypeVar("Kind", bound=grpc.Channel | aio.Channel)

_UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED.name


class Outdated(CallFailed):
    """A call whose certificate was refused, and has been replaced since; nothing was done. To callers, a break."""


@dataclass(eq=False, slots=True)
class Line(Generic[Kind]):
    """A channel, and how many calls are under way over it."""

    channel: Kind
    stub: Any
    calls: int = 0


class Channels(Generic[Kind]):
    """Those of threads or of an event loop; several threads may use it."""

    def __init__(self, endpoint: Endpoint, options: Options, secure_channel: Callable[..., Kind]) -> None:
        """Make the first channel; nothing is sent.

        Args:
            endpoint: the agent, and the files for mutual TLS with it.
            options: how calls are made.
            secure_channel: grpc's own, or that of grpc.aio.

        Raises:
            InvalidField: the address is not HOST:PORT.
            TlsProblem: with these files no connection can come about.
            ForkedClient: none can in this process.
        """
        forks.begin()
        check_addr(endpoint.addr)
        self._endpoint, self._options, self._secure_channel = endpoint, options, secure_channel
        self._lock = threading.Lock()
        self._closed = False
        self._before: list[Line[Kind]] = []
        # Before the files are read: what changes meanwhile is seen then.
        self._stamps = tls.stamps(endpoint)
        self._line = self._made()

    def _made(self) -> Line[Kind]:
        arguments = channel.arguments(self._endpoint, self._options)
        made = self._secure_channel(self._endpoint.target, tls.credentials(self._endpoint), arguments)
        # The stub knows both kinds, and its types no variable for them.
        return Line(made, JobWorkerServiceStub(cast("grpc.Channel", made)))

    def take(self) -> Line[Kind]:
        """What to make a call over; `give_back` is for behind it.

        Raises:
            ForkedClient: there are no calls in this process.
        """
        forks.check()
        with self._lock:
            self._renew()
            self._line.calls += 1
            return self._line

    def give_back(self, line: Line[Kind]) -> list[Kind]:
        """The channels that are to be closed now, for no call will be made over them any more."""
        with self._lock:
            line.calls -= 1
            idle = [each.channel for each in self._before if not each.calls]
            self._before = [each for each in self._before if each.calls]
            return idle

    def close(self) -> list[Kind]:
        """Make no new ones; the channels that are to be closed now."""
        if forks.are_lost():
            return []
        with self._lock:
            self._closed = True
            return [each.channel for each in (*self._before, self._line)]

    def judged(self, failure: CallFailed, line: Line[Kind]) -> CallFailed:
        """A call's failure; `Outdated` if a certificate was refused that has been replaced since."""
        if failure.code != _UNAUTHENTICATED:
            return failure
        with self._lock:
            self._renew()
            if line is self._line:
                return failure
        return Outdated(UNAVAILABLE, failure.message, request_id=failure.request_id)

    def _renew(self) -> None:
        """Go over to the files as they are now, if they have changed and can be used."""
        if self._closed or (stamps := tls.stamps(self._endpoint)) == self._stamps:
            return
        try:
            # Half of a pair is there for a moment when both are replaced.
            tls.preflight(self._endpoint)
            fresh = self._made()
        except TlsProblem:
            return
        self._before.append(self._line)
        self._line, self._stamps = fresh, stamps

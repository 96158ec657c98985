"""The calls that stay open: ended with their certificate or what the policy allows, and when the gateway stops.

A gateway that stops lets those be that are about to end by themselves, for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from jobworker.errors import JobWorkerError
from jobworker.gateway.certificates import Peer

# Certificates end by the wall clock, which may be set, and timers run by the monotonic one: so look again.
_LOOK_SECONDS = 4.0


@dataclass(slots=True, eq=False)
class Hold:
    """One stream.

    Attributes:
        check: raises JobWorkerError if it may not go on.
        finite: nothing more comes of what it tells of.
    """

    peer: Peer
    ending: asyncio.Timeout
    check: Callable[[], None] | None = None
    finite: Callable[[], bool] = lambda: False
    reason: JobWorkerError | None = None

    def end(self, reason: JobWorkerError) -> None:
        if self.reason is None:
            self.reason = reason
            self.ending.reschedule(asyncio.get_running_loop().time())


# Of a stream, in the context of its call's own task.
HOLD: ContextVar[Hold] = ContextVar("hold")


@dataclass(slots=True)
class OpenStreams:
    """All streams that are open; how many there may be, the quotas say.

    Attributes:
        check: raises Unauthenticated if a peer may not go on.
    """

    check: Callable[[Peer], None]
    _streams: set[Hold] = field(default_factory=set)
    _timer: asyncio.TimerHandle | None = None
    _closing: JobWorkerError | None = None

    @asynccontextmanager
    async def hold(self, peer: Peer) -> AsyncIterator[Hold]:
        """Run a stream; it is interrupted when it has to end.

        Raises:
            Unauthenticated: the peer's certificate has ended meanwhile.
            JobWorkerError: what `end_all` was given.
        """
        if self._closing:
            raise self._closing
        stream = Hold(peer, asyncio.timeout(None))
        HOLD.set(stream)
        try:
            # Not by cancelling the call's task: grpc then leaves the client without a status.
            async with stream.ending:
                self._streams.add(stream)
                if self._timer is None:
                    self._look()
                yield stream
        except TimeoutError:
            if stream.reason is None:
                raise
            raise stream.reason from None
        finally:
            self._streams.discard(stream)

    def end_all(self, reason: JobWorkerError, *, patience: float) -> None:
        """End every stream with this error, those to come included.

        Args:
            reason: the error.
            patience: so long those may take that are finite, in seconds.
        """
        self._closing = reason
        for stream in self._streams:
            if not stream.finite():
                stream.end(reason)
        asyncio.get_running_loop().call_later(patience, self._end_late, reason)

    def _end_late(self, reason: JobWorkerError) -> None:
        for stream in self._streams:
            stream.end(reason)

    def _look(self) -> None:
        """End the streams that may not go on, and come back while any is open."""
        self._timer = None
        try:
            for stream in self._streams:
                try:
                    self.check(stream.peer)
                    if stream.check:
                        stream.check()
                except JobWorkerError as error:
                    stream.end(error)
        finally:
            # Whatever goes wrong with one look: another must come.
            if self._streams:
                self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

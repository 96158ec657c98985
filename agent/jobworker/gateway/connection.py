"""One connection to the supervisor: frames out with back-pressure, frames in, answers to their requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from jobworker.errors import AgentUnavailable, ProtocolError
from jobworker.wire import frames, messages, sockets

_INCOMING = (*messages.ANSWERS, *messages.EVENTS)
# So many frames are taken in before other work of the event loop gets its turn.
_ROUND = 16
_MAX_QUEUED_BYTES = 16 * 1024 * 1024


class ConnectionLost(Exception):
    """The connection ended before the answer came."""


class Connection:
    """Connected from the moment it is made. Not for more than one event loop."""

    def __init__(self, path: str, on_message: Callable[[Any], None]) -> None:
        """Connect.

        Args:
            path: the supervisor's socket.
            on_message: gets every message that comes, before the answer is given to who asked for it.

        Raises:
            OSError: nobody listens there.
        """
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._pending: dict[int, asyncio.Future[frames.Frame]] = {}
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._seq = 0
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._sock = sockets.connect(path)
        self._loop.add_reader(self._sock, self._readable)

    async def request(self, message: Any) -> frames.Frame:
        """Send a request and wait for its answer; the answer's descriptors are the caller's.

        Raises:
            ProtocolError: the request does not fit a frame.
            AgentUnavailable: too much waits to be sent already.
            ConnectionLost: no answer will come.
        """
        if self._ended.done():
            raise ConnectionLost(self._ended.result())
        if self._queued_bytes > _MAX_QUEUED_BYTES:
            raise AgentUnavailable("the supervisor does not keep up with requests")
        self._seq += 1
        frame = frames.encode(message, self._seq)
        future: asyncio.Future[frames.Frame] = self._loop.create_future()
        self._pending[self._seq] = future
        # Sending may find that the peer has gone, which whoever is pending is told of.
        self._send(frame)
        try:
            return await future
        except asyncio.CancelledError:
            # Cancelled between the answer's arrival and this: nobody else would close what came with it.
            if not future.cancelled() and future.exception() is None:
                future.result().fds.close()
            raise

    async def ended(self) -> str:
        """Wait for the connection's end; why it ended."""
        return await asyncio.shield(self._ended)

    def close(self, reason: str = "closed") -> None:
        """End the connection; requests without an answer fail."""
        if self._ended.done():
            return
        self._ended.set_result(reason)
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(ConnectionLost(reason))

    def _send(self, frame: bytes) -> None:
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        if len(self._queue) == 1:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._queue:
                sockets.send(self._sock, self._queue[0])
                self._queued_bytes -= len(self._queue.popleft())
        except BlockingIOError:
            self._loop.add_writer(self._sock, self._flush)
        except ConnectionError:
            # The peer has gone. What it said before is still there, and its end is behind that.
            self._queue.clear()
            self._queued_bytes = 0
            self._loop.remove_writer(self._sock)
        except OSError as error:
            self.close(f"sending failed: {error.strerror}")
        else:
            self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            for _ in range(_ROUND):
                frame = frames.receive(self._sock, _INCOMING)
                if frame is None:
                    self.close("the supervisor closed the connection")
                    break
                self._deliver(frame)
        except BlockingIOError:
            pass
        except OSError as error:
            self.close(f"receiving failed: {error.strerror}")
        except ProtocolError as error:
            self.close(str(error))

    def _deliver(self, frame: frames.Frame) -> None:
        self._on_message(frame.message)
        future = self._pending.pop(frame.seq, None)
        if future is None or future.done():
            frame.fds.close()
        else:
            future.set_result(frame)

"""A supervisor that says what a test tells it to, over a real socket: for what a good one does not do."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from jobworker import policy
from jobworker.errors import JobWorkerError
from jobworker.gateway.link import SupervisorLink
from jobworker.histogram import NOTHING_YET
from jobworker.jobs import JobRecord, State
from jobworker.wire import frames, messages, sockets
from jobworker.wire.host import HostInfo
from jobworker.wire.measures import Life, Totals

SILENCE = object()
HOST = HostInfo("none", (), 1, 1024, 10, user_per_job=False, sandbox="standard", isolation=())

T = TypeVar("T")

# Returns a message, or an `Answer`, or None to go away without one, or SILENCE to stay without one.
Handler = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """A message with descriptors, which are closed once they are sent."""

    message: Any
    fds: tuple[int, ...] = ()


def record(number: int = 0, **changes: Any) -> JobRecord:
    """A job's record; `number` makes its id and its age."""
    made = JobRecord(
        job_id=job_id(number),
        principal="spiffe://test/user/w",
        command="true",
        args=(),
        env_names=(),
        labels=(),
        workdir="/work",
        timeout_ms=0,
        uid=1000,
        pid=100 + number,
        state=State.RUNNING,
        created_ns=1_000_000_000 + number,
        segment_bytes=1024,
    )
    return replace(made, **changes)


def job_id(number: int) -> str:
    text = f"{number:016d}"
    return "-".join(text[i : i + 4] for i in range(0, 16, 4))


class ScriptedSupervisor:
    """Serves one connection after the other, in a thread, until it is closed.

    Attributes:
        records: what it reports to who subscribes.
        handlers: by type of request; they run in its thread.
        requests: what it was asked.
        policy: that it says it has.
        connected: set once a peer has been greeted.
    """

    def __init__(self, directory: str, *, protocol: int = messages.PROTOCOL) -> None:
        self.path = os.path.join(directory, "supervisor.sock")
        self.records: list[JobRecord] = []
        self.handlers: dict[type[Any], Handler] = {}
        self.requests: list[Any] = []
        self.connected = threading.Event()
        self.policy = messages.PolicyIs(policy.default((), "standard"), "")
        self._news = threading.Condition()
        self._protocol = protocol
        self._peer: socket.socket | None = None
        directory_fd = os.open(directory, os.O_RDONLY)
        self._listener = sockets.listen(directory_fd, "supervisor.sock", 0o600)
        os.close(directory_fd)
        self._wakeup, self._stop = os.pipe()
        # Of a test that has failed nobody may come to close it.
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while self._wait_for(self._listener):
            with sockets.accept(self._listener) as peer:
                self._peer = peer
                while self._wait_for(peer) and self._handle_next(peer):
                    pass
                self.connected.clear()
                self._peer = None

    def _wait_for(self, sock: socket.socket) -> bool:
        readable, _, _ = select.select([sock.fileno(), self._wakeup], [], [])
        return self._wakeup not in readable

    def _handle_next(self, peer: socket.socket) -> bool:
        """Take and answer one request; False at the end of the connection."""
        try:
            frame = frames.receive(peer, messages.REQUESTS)
            if frame is None:
                return False
            with self._news:
                self.requests.append(frame.message)
                self._news.notify_all()
            answer = self._answer(frame.message)
            if not isinstance(answer, Answer):
                answer = Answer(answer)
            if answer.message is None:
                return False
            if answer.message is SILENCE:
                return True
            self._send(peer, frames.encode(answer.message, frame.seq), answer.fds)
            for fd in answer.fds:
                os.close(fd)
            if isinstance(frame.message, messages.Hello):
                self._report(peer)
        except OSError:
            return False
        return True

    def _send(self, peer: socket.socket, data: bytes, fds: tuple[int, ...]) -> None:
        while True:
            try:
                sockets.send(peer, data, fds)
            except BlockingIOError:
                # A gateway that has much else to do reads later.
                _, writable, _ = select.select([self._wakeup], [peer], [])
                if not writable:
                    raise
            else:
                return

    def _answer(self, request: Any) -> Any:
        if type(request) in self.handlers:
            try:
                return self.handlers[type(request)](request)
            except JobWorkerError as error:
                return frames.failed(error)
        match request:
            case messages.Hello():
                return messages.Welcome(self._protocol, HOST, "1.0", self.policy)
            case messages.UnfollowLog() | messages.ReportCalls():
                return messages.Done()
            case messages.Measure():
                return messages.Measures(Totals(), Life(0, 0, NOTHING_YET))
            case messages.ReadLimits():
                return messages.HostIs(HOST)
            case _:
                known = {known.job_id: known for known in self.records}
                return messages.JobReply(known[request.job_id])

    def _report(self, peer: socket.socket) -> None:
        peer.setblocking(True)
        for known in self.records:
            sockets.send(peer, frames.encode(messages.JobChanged(known), 0))
        sockets.send(peer, frames.encode(messages.Synced(), 0))
        peer.setblocking(False)
        self.connected.set()

    def wait_asked(self, kind: type[Any]) -> None:
        """Wait until a request of this type has come."""
        with self._news:
            assert self._news.wait_for(lambda: self.asked(kind), 30)

    def asked(self, kind: type[Any]) -> int:
        """How many requests of this type have come."""
        return sum(isinstance(request, kind) for request in self.requests)

    def tell(self, event: Any) -> None:
        assert self._peer is not None
        sockets.send(self._peer, frames.encode(event, 0))

    def drop(self) -> None:
        """End the connection, as a supervisor does that dies."""
        assert self._peer is not None
        self._peer.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        os.write(self._stop, b"x")
        self._thread.join()
        self._listener.close()
        os.unlink(self.path)
        os.close(self._wakeup)
        os.close(self._stop)


def linked(path: str, scenario: Callable[[SupervisorLink], Awaitable[T]]) -> T:
    """Run a scenario with a link that is kept up."""

    async def whole() -> T:
        link = SupervisorLink(path)
        # First the scenario, so that it can listen to the link before there is anything to hear.
        running = asyncio.ensure_future(scenario(link))
        keeping = asyncio.create_task(link.run())
        try:
            return await asyncio.wait_for(running, 30)
        finally:
            keeping.cancel()

    return asyncio.run(whole())

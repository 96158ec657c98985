"""The gateway's end of the socket to the supervisor: one connection, kept up for as long as the gateway runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import structlog

from jobworker.errors import AgentUnavailable, JobWorkerError, ProtocolError
from jobworker.gateway.connection import Connection, ConnectionLost
from jobworker.wire import frames
from jobworker.wire.messages import PROTOCOL, Failed, Hello, Welcome
from jobworker.wire.sockets import Descriptors

# For so long a call waits for a supervisor that is restarting.
PATIENCE_SECONDS = 3.0
# A request that kills the supervisor must not do so for ever.
_REPEATS = 2
# No request takes the supervisor that long, unless it is stopped or the host is in trouble.
_ANSWER_SECONDS = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 1.0
_UNKNOWN = "it may have done it or not"

_log = structlog.get_logger()

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Lost:
    """Event: the supervisor is not there, for the moment; or still not, for another reason."""

    problem: str


# Gets `Lost` and all that the supervisor says, answers included, in the order in which it came. `Welcome` begins
# a connection.
Listener = Callable[[Any], None]


class SupervisorLink:
    """Asks the supervisor, and hands on what it says; reconnects by itself."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._listeners: tuple[Listener, ...] = ()
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._problem = "the supervisor has not been reached yet"

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def listen(self, *listeners: Listener) -> None:
        """Hand on to these, before others that come later."""
        self._listeners += listeners

    async def ask(self, request: Any, answer: type[A], *, repeatable: bool) -> tuple[A, Descriptors]:
        """Send a request; the answer, and the descriptors that came with it, which are the caller's.

        Args:
            request: a message of the wire.
            answer: the type that its docstring names.
            repeatable: send it again if the supervisor goes away before it has answered.

        Raises:
            AgentUnavailable: there is no supervisor, or it went away, or it does not answer.
            JobWorkerError: what the supervisor answered.
        """
        for _ in range(1 + _REPEATS * repeatable):
            connection = await self._ready()
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    frame = await connection.request(request)
            except TimeoutError:
                raise AgentUnavailable(f"the supervisor is silent; {_UNKNOWN}") from None
            except ConnectionLost:
                self._leave(connection)
                continue
            return _checked(frame, answer)
        raise AgentUnavailable(f"the supervisor went away over this; {_UNKNOWN}")

    async def _ready(self) -> Connection:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self._connection is None:
                    await self._connected.wait()
        except TimeoutError:
            raise AgentUnavailable(self._problem or "the supervisor does not answer") from None
        return self._connection

    async def run(self) -> NoReturn:
        """Keep the connection up; ends by being cancelled."""
        pause = _FIRST_PAUSE
        while True:
            try:
                self._lost(await self._session())
                pause = _FIRST_PAUSE
            except OSError as error:
                self._lost(f"the supervisor cannot be reached: {error.strerror}")
            except (JobWorkerError, ConnectionLost) as error:
                self._lost(f"the supervisor does not answer as it should: {error}")
            # The kernel tells nobody that a path is being listened on again.
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _session(self) -> str:
        """One connection, from its greeting to its end; why it ended."""
        connection = Connection(self._path, self._tell)
        try:
            _checked(await connection.request(Hello(PROTOCOL, subscribe=True)), Welcome)
            self._connection = connection
            self._connected.set()
            self._problem = ""
            _log.info("supervisor connected")
            return await connection.ended()
        finally:
            connection.close()
            self._leave(connection)

    def _leave(self, connection: Connection) -> None:
        """Whoever notices first that a connection has ended keeps others from using it."""
        if self._connection is connection:
            self._connection = None
            self._connected.clear()

    def _tell(self, message: Any) -> None:
        if isinstance(message, Welcome) and message.protocol != PROTOCOL:
            raise ProtocolError(
                f"the supervisor speaks version {message.protocol} of the protocol and this gateway {PROTOCOL}; "
                "restart both from the same version of jobworker"
            )
        for listener in self._listeners:
            listener(message)

    def _lost(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("supervisor not connected", problem=problem)
            self._problem = problem
            self._tell(Lost(problem))


def _checked(frame: frames.Frame, answer: type[A]) -> tuple[A, Descriptors]:
    if isinstance(frame.message, answer):
        return frame.message, frame.fds
    frame.fds.close()
    if isinstance(frame.message, Failed):
        raise frames.to_error(frame.message)
    raise ProtocolError(f"{type(frame.message).__name__} in place of {answer.__name__}")

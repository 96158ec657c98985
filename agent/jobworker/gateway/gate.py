"""The gate in front of every call: who is it, may they, what do they ask; and how it ended, in the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import structlog
from grpc import aio

from jobworker.errors import (
    AgentUnavailable,
    CapExceeded,
    HostFault,
    InvalidField,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
)
from jobworker.gateway import access, permits, requests, status
from jobworker.gateway.calls import Calls, label
from jobworker.gateway.certificates import Peer, PeerReader
from jobworker.gateway.permits import Permits
from jobworker.gateway.quotas import Lane, Quotas, lane_of
from jobworker.gateway.reports import Reports, clip
from jobworker.gateway.spans import LAUNCH, TRACEPARENT, EndedCall, Tracer
from jobworker.gateway.streams import Hold, OpenStreams
from jobworker.gateway.turns import Turns
from jobworker.jobs import check_request_id
from jobworker.wire.callers import Caller, CallReport

_REQUEST_SECONDS = 10.0
# grpc holds a peer to this only once that has acknowledged it (RFC 9113, 6.5.3), which it need never do. An entry
# counts with so much more than its key and value (RFC 9113, 6.5.2).
_MAX_METADATA, _ENTRY_BYTES = 16 * 1024, 32
# In a call's metadata: what its client calls it in its own logs. In the answer's trailers: what we do.
REQUEST_ID = "x-request-id"

# In a stream's request metadata: how to compress the answers. That a client could read it, which grpc tells by
# itself, says nothing of whether its network is slower than a CPU.
COMPRESSION = "jobworker-compression"
_COMPRESSIONS = {"identity": grpc.Compression.NoCompression, "gzip": grpc.Compression.Gzip}

_log = structlog.get_logger()

Context = aio.ServicerContext[Any, Any]
# grpc's stubs know handlers that are not coroutines only.
Handler = Any
Work = Callable[["_CallRecord", Peer], Awaitable[bytes]]

# What was asked was not done for who asked, or for how; all else is what became of a call that was let in.
_REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")

# Of other errors the text may quote the request.
_TELLING = (Unauthenticated, PermissionDenied, QuotaExceeded, CapExceeded, AgentUnavailable, HostFault)


class Gate(aio.ServerInterceptor):
    """Authenticates and authorises each call before its request is read, and logs each.

    Nothing passes beside it: methods that do not exist and those of other services are judged as well.
    """

    def __init__(
        self,
        peers: PeerReader,
        quotas: Quotas,
        permits: Permits,
        streams: OpenStreams,
        calls: Calls,
        reports: Reports,
        tracer: Tracer | None,
    ) -> None:
        self._peers = peers
        self.quotas = quotas
        self._turns = Turns()
        self.permits = permits
        self._streams = streams
        self._calls = calls
        self._reports = reports
        self._tracer = tracer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        # Once: grpc makes all of it anew each time that it is asked.
        metadata = _bounded(handler_call_details.invocation_metadata or ())
        call = _Method(self, handler_call_details.method, handler or _NOT_SERVED, metadata)
        # As if the client streamed: grpc then leaves reading the request, of which there is one, to the call.
        if call.handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(call.stream, response_serializer=requests.encode)
        return grpc.stream_unary_rpc_method_handler(call.unary)

    async def guard(self, call: _Method, context: Context, work: Work, *, streaming: bool) -> bytes:
        """Do the work of a call if the caller may have it done, and turn what goes wrong into a status."""
        name, reports, method = self._reports.new_call(), self._reports, call.name
        record = _CallRecord(method, context.peer(), name, time.monotonic(), self._calls, reports, self._tracer)
        if self._tracer:
            record.traceparent = call.asked(TRACEPARENT)
        asked = call.asked(REQUEST_ID)
        record.take_request_id(asked)
        context.set_trailing_metadata(((REQUEST_ID, record.request or name),))
        self._calls.started(method)
        try:
            record.peer = self._peers.identify(context.auth_context())
            if call.metadata is None:
                raise InvalidField("metadata", f"has more than {_MAX_METADATA} bytes")
            if asked:
                check_request_id(asked, REQUEST_ID)
            result = await self._in_its_lane(record, record.peer, lane_of(method, streaming=streaming), work)
        except aio.AbortError:
            record.log(context.code().name)
            raise
        except (asyncio.CancelledError, aio.BaseError):
            # The client is gone, or the server is stopping and its patience is over.
            record.log("CANCELLED")
            raise
        except Exception as error:  # noqa: BLE001 - the top loop of a call
            if record.peer is None:
                record.presented = self._peers.presented(context.auth_context())
            return await self._refuse(context, record, error)
        record.log("OK")
        return result

    async def _in_its_lane(self, record: _CallRecord, peer: Peer, lane: Lane, work: Work) -> bytes:
        caller = peer.principal.uri
        try:
            with self.quotas.hold(caller, lane):
                # Streams go on for days, and what is urgent does not wait.
                turn = self._turns.turn(caller) if lane is Lane.CALLS else nullcontext()
                async with turn:
                    return await self._admitted(record, peer, work)
        except QuotaExceeded:
            # Who asks again at once is told later and later: a refusal costs as much as a small call.
            with self.quotas.hold_back(caller) as seconds:
                await asyncio.sleep(seconds)
            raise

    async def _admitted(self, record: _CallRecord, peer: Peer, work: Work) -> bytes:
        access.authorise(record.method, peer.principal)
        await self.permits.admit(record.method, peer.principal)
        access.PRINCIPAL.set(peer.principal)
        access.CALLER.set(record.caller())
        return await work(record, peer)

    async def _refuse(self, context: Context, record: _CallRecord, error: Exception) -> NoReturn:
        rule, answer = status.rule_of(error), status.answer(error)
        if not rule.public:
            _log.error("internal error", method=record.method[:120], exc_info=error)
        if isinstance(error, InvalidField):
            record.field = error.field
        self._tell(record, answer.code.name, rule.reason, error)
        trailers = (*context.trailing_metadata(), *answer.trailers)
        await context.abort(answer.code, answer.message, trailers)

    def _tell(self, record: _CallRecord, code: str, reason: str, error: Exception) -> None:
        more = {"detail": str(error)} if isinstance(error, _TELLING) else {}
        if denial := permits.denial(error):
            more |= {"rule": denial.rule, "problem": denial.problem}
        if record.peer and isinstance(error, QuotaExceeded | CapExceeded):
            # Whoever can be refused any number of times must not fill log and trail with that.
            untold = self.quotas.tell(record.peer.principal.uri, error)
            if untold is None:
                record.count(code, reason)
                return
            more["detail"] += f" ({untold} more refusals were not told)" if untold else ""
        record.log(code, reason=reason, **more)

    def check(self, peer: Peer) -> None:
        """Check once more that the peer may go on.

        Raises:
            Unauthenticated: it may not.
        """
        self._peers.check(peer)

    def hold(self, peer: Peer) -> AbstractAsyncContextManager[Hold]:
        return self._streams.hold(peer)


@dataclass(frozen=True, slots=True)
class _Method:
    """One call of a method as grpc makes it.

    Attributes:
        metadata: what its client has put there; None if that is too much.
    """

    gate: Gate
    name: str
    handler: Handler
    metadata: dict[str, Any] | None

    def asked(self, key: str, default: str = "") -> str:
        """What the client has put into the metadata."""
        return str((self.metadata or {}).get(key, default))

    async def unary(self, _requests: object, context: Context) -> bytes:
        async def work(record: _CallRecord, peer: Peer) -> bytes:
            request = await self._receive(context, peer)
            record.about(request)
            await self.gate.permits.examine(self.name, peer.principal, request)
            answer = await self.handler.unary_unary(request, context)
            record.about(getattr(answer, "job", None))
            return requests.encode(answer)

        return await self.gate.guard(self, context, work, streaming=False)

    async def stream(self, _requests: object, context: Context) -> None:
        async def work(record: _CallRecord, peer: Peer) -> bytes:
            # Now, and not with the first message: a stream that is ended while that one is under way would
            # send these a second time with its status, which grpc's core refuses; no status would go out.
            _compress(context, self.asked(COMPRESSION, "identity"))
            await context.send_initial_metadata(())
            async with self.gate.hold(peer) as held:
                request = await self._receive(context, peer)
                record.about(request)
                held.check = await self.gate.permits.examine(self.name, peer.principal, request)
                # It may go on for days.
                record.report("stream_opened", "")
                if self.handler.request_streaming:
                    await self.handler.stream_stream(self._following(request, context, peer), context)
                else:
                    await self.handler.unary_stream(request, context)
            return b""

        await self.gate.guard(self, context, work, streaming=True)

    async def _following(self, first: Any, context: Context, peer: Peer) -> AsyncIterator[Any]:
        """The requests of a call, the first of which has been judged; others come when they come."""
        yield first
        while isinstance(data := await context.read(), bytes):
            while delay := self.gate.quotas.delay(peer.principal.uri):  # noqa: ASYNC110 - it is time that is waited for
                await asyncio.sleep(delay)
            yield self._parsed(data, peer)

    async def _receive(self, context: Context, peer: Peer) -> Any:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                data = await context.read()
        except TimeoutError:
            raise InvalidField("request", f"did not arrive within {_REQUEST_SECONDS:.0f} s") from None
        if not isinstance(data, bytes):
            raise InvalidField("request", "is missing")
        return self._parsed(data, peer)

    def _parsed(self, data: bytes, peer: Peer) -> Any:
        # A request may be long in coming.
        self.gate.check(peer)
        return requests.parse(data, self.handler.request_deserializer)


def _compress(context: Context, asked: str) -> None:
    """Have grpc compress the answers of a call whose client has asked for that.

    Raises:
        InvalidField: by something that this agent cannot do.
    """
    if asked not in _COMPRESSIONS:
        raise InvalidField(COMPRESSION, f"{asked!r:.40} is not a compression that this agent knows", "gzip")
    context.set_compression(_COMPRESSIONS[asked])


def _bounded(metadata: Sequence[tuple[str, Any]]) -> dict[str, Any] | None:
    """A call's metadata, or None if there is more than `_MAX_METADATA`."""
    # Which most often does without a look at each of a hundred thousand.
    if len(metadata) * _ENTRY_BYTES > _MAX_METADATA:
        return None
    size = sum(_ENTRY_BYTES + len(key) + len(value) for key, value in metadata)
    return None if size > _MAX_METADATA else dict(metadata)


async def _not_served(_request: object, _context: Context) -> NoReturn:
    raise NotImplementedError


# Stands for methods that do not exist: no rule of the table leads to it.
_NOT_SERVED: Handler = grpc.unary_unary_rpc_method_handler(_not_served)


@dataclass(slots=True)
class _CallRecord:
    """What log and audit trail tell of a call. Of what the request holds only the job: arguments may be secret."""

    method: str
    address: str
    name: str
    started: float
    calls: Calls
    reports: Reports
    tracer: Tracer | None
    peer: Peer | None = None
    presented: tuple[str, str] = ("", "")
    job_id: str = ""
    # The name of a field that is wrong; what is wrong with it would quote the request.
    field: str = ""
    # The client's name for the call; one that is none is not told anywhere.
    request: str = ""
    traceparent: str = ""

    def take_request_id(self, asked: str) -> None:
        """Have the call named so, in the lines that are logged from now on in its task as well."""
        with suppress(InvalidField):
            self.request = check_request_id(asked, REQUEST_ID)
        structlog.contextvars.bind_contextvars(request=self.request or self.name)

    def caller(self) -> Caller:
        if self.peer is None:
            uri, serial = self.presented
            return Caller(clip(uri), None, serial, self.address, self.name, self.request)
        principal = self.peer.principal
        return Caller(principal.uri, principal.role, principal.serial, self.address, self.name, self.request)

    def about(self, message: Any) -> None:
        """Take the job from a request, or the job of an answer, that names one."""
        named = getattr(message, "job_id", "") or getattr(message, "id", "")
        if isinstance(named, str):
            self.job_id = self.job_id or clip(named)

    def report(self, event: str, code: str, reason: str = "", detail: str = "") -> None:
        self.reports.add(
            CallReport(
                event=event,
                caller=self.caller(),
                rpc=clip(self.method),
                allowed=code not in _REFUSED,
                code=code,
                reason=reason,
                detail=clip(detail or self.field),
                job_id=self.job_id,
                at_ns=time.time_ns(),
                took_ms=round((time.monotonic() - self.started) * 1000),
            )
        )

    def count(self, code: str, reason: str) -> None:
        seconds = time.monotonic() - self.started
        self.calls.ended(self.method, code, seconds, reason)
        if self.tracer:
            self.tracer.ended(self._ended(code, reason, seconds))

    def _ended(self, code: str, reason: str, seconds: float) -> EndedCall:
        now = time.time_ns()
        return EndedCall(
            method=label(self.method),
            code=code,
            reason=reason,
            role=self.peer.principal.role.value if self.peer else "",
            request_id=self.request or self.name,
            job_id=self.job_id,
            traceparent=self.traceparent,
            arrived_ns=now - round(seconds * 1e9),
            ended_ns=now,
            launch=LAUNCH.get(),
        )

    def log(self, code: str, **more: str) -> None:
        self.count(code, more.get("reason", ""))
        self.report("call", code, more.get("reason", ""), more.get("detail", ""))
        principal = self.peer.principal if self.peer else None
        write = _log.info if code in ("OK", "CANCELLED") else _log.warning
        write(
            "call",
            method=self.method[:120],
            code=code,
            principal=principal.uri if principal else "",
            serial=principal.serial if principal else "",
            peer=self.address,
            call=self.name,
            ms=round((time.monotonic() - self.started) * 1000, 3),
            **more,
        )

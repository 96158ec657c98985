"""Who calls, and what the gateway tells of calls."""

from __future__ import annotations

from dataclasses import dataclass

from jobworker.identity import Role


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made a call, by the gateway's word alone.

    Attributes:
        principal: the URI of the certificate, which a peer that was not let in may not have.
        role: likewise.
        serial: of the certificate, in lower-case hexadecimal.
        peer: its address, as grpc writes it.
        call: names this one call in the logs.
        request: what the client calls it; empty for nothing.
    """

    principal: str
    role: Role | None = None
    serial: str = ""
    peer: str = ""
    call: str = ""
    request: str = ""

    @property
    def request_id(self) -> str:
        """The client's name for the call, or ours."""
        return self.request or self.call


@dataclass(frozen=True, slots=True)
class CallReport:
    """One decision of the gateway, and what became of the call.

    Attributes:
        event: `call` when it has ended, `stream_opened` when a stream was let in.
        rpc: the method's full name, which may be one that does not exist.
        code: the gRPC status; empty while there is none.
        reason: by what rule it was refused.
        job_id: what it was about; empty if its request was not read.
        at_ns: when, in nanoseconds of Unix time.
        took_ms: from its arrival, rounded.
    """

    event: str
    caller: Caller
    rpc: str
    allowed: bool
    code: str
    reason: str
    detail: str
    job_id: str
    at_ns: int
    took_ms: int

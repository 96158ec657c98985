"""How a client makes its calls."""

from __future__ import annotations

from dataclasses import dataclass

from jobworker import jobs
from jobworker.client import tracecontext


@dataclass(frozen=True, slots=True)
class Options:
    """The same for all calls of a client.

    Attributes:
        timeout: for each call that is not a stream of answers, in seconds; `stop` has the grace on top.
        connect_timeout: for a connection to come about, in seconds; it may take as long again, up to 5 s, to find
            out why there is none.
        request_id: by which the agent's log, its audit trail and its jobs' records name all calls; empty for one
            of its own for each, which further attempts share.
        traceparent: the span that calls belong to, as W3C Trace Context writes it; one of OpenTelemetry's that is
            current goes before it. Empty for none.

    Raises:
        InvalidField: the id of requests or the span is none.
    """

    timeout: float
    connect_timeout: float
    request_id: str
    traceparent: str

    def __post_init__(self) -> None:
        if self.request_id:
            jobs.check_request_id(self.request_id, "request_id")
        if self.traceparent:
            tracecontext.check(self.traceparent, "traceparent")

"""Traces of calls for a collector, by OpenTelemetry (the extra `otel`); only here it is imported.

A span is made when its call has ended, of what is known then. The SDK's thread sends spans on; calls never wait
for it. While the collector is away spans wait in bounded number, the oldest make room, and the log says so once.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from urllib.parse import urlsplit

import grpc
import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from jobworker import __version__
from jobworker.errors import InvalidField
from jobworker.gateway.spans import TRACEPARENT, EndedCall, Launch
from jobworker.jobs import JobRecord
from jobworker.settings.schema import TracingSettings

# So many spans wait, 10 MiB of them; so many go in one message, at least so often.
_MAX_WAITING, _BATCH, _GATHER_MS = 2_048, 512, 1_000
# For one message, further attempts included.
_EXPORT_SECONDS = 5
_LAST_SECONDS = 2.0
# What is the caller's fault is no error of a server's span (OpenTelemetry's conventions for gRPC).
_SERVERS_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
# The collector is named by the setting alone: no proxy, and no call policy from a TXT record.
_CHANNEL = (("grpc.enable_http_proxy", 0), ("grpc.service_config_disable_resolution", 1))

_log = structlog.get_logger()
_parents = TraceContextTextMapPropagator()


class OtlpTracer:
    """Makes spans of calls, and has them sent."""

    def __init__(self, settings: TracingSettings) -> None:
        """Begin; nothing is sent before the first call has ended.

        Raises:
            InvalidField: the variables of the environment that OpenTelemetry reads cannot be used.
        """
        try:
            self._exporter = _Exporter(settings.endpoint)
            self._provider = _provider(settings.ratio_millis / 1000)
            self._provider.add_span_processor(
                BatchSpanProcessor(self._exporter, _MAX_WAITING, _GATHER_MS, _BATCH, _EXPORT_SECONDS * 1000)
            )
        except Exception as error:  # whatever the SDK makes of its environment
            problem = f"OpenTelemetry cannot use what OTEL_ variables say: {error}"
            raise InvalidField("tracing", problem, "OTEL_EXPORTER_OTLP_HEADERS=api-key=…") from error
        self._tracer = self._provider.get_tracer("jobworker", __version__)

    def ended(self, call: EndedCall) -> None:
        """Make spans of a call, if this trace is one of those that are told; never waits."""
        parent = _parents.extract({TRACEPARENT: call.traceparent}, Context())
        span = self._tracer.start_span(
            call.method, parent, SpanKind.SERVER, _attributes(call), start_time=call.arrived_ns
        )
        if call.launch and span.is_recording():
            self._launch(trace.set_span_in_context(span, Context()), call.launch)
        if call.code in _SERVERS_FAULTS:
            span.set_status(Status(StatusCode.ERROR))
        span.end(call.ended_ns)

    def _launch(self, within: Context, launch: Launch) -> None:
        span = self._tracer.start_span("launch", within, start_time=launch.asked_ns)
        if launch.error:
            span.set_attribute("error.type", launch.error)
            span.set_status(Status(StatusCode.ERROR))
        if launch.record:
            _tell_of_job(span, launch.record, launch.asked_ns)
        span.end(launch.answered_ns)

    async def finish(self) -> None:
        """Send what is left, if the collector takes it soon."""
        ending = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        await asyncio.wait((ending,), timeout=_LAST_SECONDS)
        # Ends what is still being sent, and so the thread.
        self._exporter.shutdown()
        await ending


def _provider(ratio: float) -> TracerProvider:
    named = {"service.name": "jobworker", "service.version": __version__, "host.name": os.uname().nodename}
    return TracerProvider(
        # Callers decide for their own traces.
        sampler=ParentBased(TraceIdRatioBased(ratio)),
        resource=Resource.create(named),
        shutdown_on_exit=False,
        span_limits=SpanLimits(max_span_attribute_length=256),
    )


def _attributes(call: EndedCall) -> dict[str, str | int]:
    service, _, name = call.method.rpartition("/")
    told = {
        "rpc.service": service,
        "jobworker.reason": call.reason,
        "jobworker.role": call.role,
        "jobworker.request_id": call.request_id,
        "jobworker.job_id": call.job_id,
    }
    number: int = grpc.StatusCode[call.code].value[0]
    return {
        "rpc.system": "grpc",
        "rpc.method": name,
        "rpc.grpc.status_code": number,
        **{key: value for key, value in told.items() if value},
    }


def _tell_of_job(span: Span, job: JobRecord, asked_ns: int) -> None:
    if job.created_ns < asked_ns:
        # An idempotency key has led to a job that was there.
        span.set_attribute("jobworker.existing", value=True)
        return
    span.add_event("created", timestamp=job.created_ns)
    if job.started_ns:
        span.add_event("started", timestamp=job.started_ns)


class _Exporter(SpanExporter):
    """The SDK's own, with one line in the log for a collector that is away, and one for its return."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint, self._lost, self._problem = endpoint, 0, _Problem()
        logger = logging.getLogger("opentelemetry")
        logger.handlers, logger.propagate = [self._problem], False
        self._sender = OTLPSpanExporter(
            endpoint=endpoint,
            insecure=urlsplit(endpoint).scheme == "http",
            timeout=_EXPORT_SECONDS,
            channel_options=_CHANNEL,  # type: ignore[arg-type] # grpc takes numbers
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._sender.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                _log.info("traces are sent again", endpoint=self._endpoint, lost=self._lost)
            self._lost = 0
        else:
            if not self._lost:
                _log.warning("traces are not sent", endpoint=self._endpoint, problem=self._problem.last)
            self._lost += len(spans)
        return result

    def shutdown(self) -> None:
        self._sender.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._sender.force_flush(timeout_millis)


class _Problem(logging.Handler):
    """Keeps the last line of the SDK's."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()[:500]

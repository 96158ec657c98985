"""Which trace a call belongs to, in the form of W3C Trace Context; nothing is made up here.

A program that traces has OpenTelemetry loaded, and who does not pays nothing: it is never imported from here.
"""

from __future__ import annotations

import re
import sys

from jobworker.errors import InvalidField

KEY = "traceparent"
_FORM = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_EXAMPLE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def check(text: str, field: str) -> str:
    """Check that this names a span.

    Raises:
        InvalidField: it does not, by version 00 of the form.
    """
    if not _FORM.fullmatch(text):
        raise InvalidField(field, f"{text!r:.80} is no traceparent of W3C Trace Context", _EXAMPLE)
    return text


def current() -> str:
    """The span of OpenTelemetry's that is current here; empty for none."""
    opentelemetry = sys.modules.get("opentelemetry.trace")
    if opentelemetry is None:
        return ""
    span = opentelemetry.get_current_span().get_span_context()
    if not span.is_valid:
        return ""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"

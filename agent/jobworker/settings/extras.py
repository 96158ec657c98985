"""What settings ask for that comes with an extra of the package, which need not be installed."""

from __future__ import annotations

from importlib.util import find_spec

from jobworker.errors import InvalidField
from jobworker.settings.schema import Settings

_OTEL = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")


def check(settings: Settings) -> None:
    """Check that what is asked for is installed where this runs.

    Raises:
        InvalidField: it is not.
    """
    if settings.tracing.endpoint and not all(map(_is_there, _OTEL)):
        problem = (
            "needs OpenTelemetry, which is not installed here; pip install 'jobworker[otel]', or leave it out"
        )
        raise InvalidField("tracing.endpoint", problem)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # Of a package above it.
        return False

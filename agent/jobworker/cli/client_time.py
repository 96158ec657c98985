"""Points in time as the command line takes and shows them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from jobworker import units
from jobworker.errors import InvalidField

_EXAMPLE = "2026-01-31T08:00:00Z, or 10m for ten minutes ago"


def moment(text: str, field: str) -> int:
    """RFC 3339, or a duration back from now by the clock of this host, as nanoseconds of Unix time.

    Raises:
        InvalidField: the text is neither.
    """
    read = _zoned(text)
    if read is None:
        return max(0, time.time_ns() - _duration_ms(text, field) * 1_000_000)
    since = read - datetime.fromtimestamp(0, UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000


def _zoned(text: str) -> datetime | None:
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        return None
    return read if read.tzinfo else None


def _duration_ms(text: str, field: str) -> int:
    try:
        return units.parse_duration(text, field)
    except InvalidField:
        problem = f"{text!r:.60} is neither a time with its zone nor a duration"
        raise InvalidField(field, problem, _EXAMPLE) from None


def shown(time_ns: int) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanos // 1_000_000:03d}Z"


def patience(text: str, field: str) -> float:
    """How long to wait at most, in seconds.

    Raises:
        InvalidField: it is no duration, or none to wait.
    """
    if seconds := units.parse_duration(text, field) / 1000:
        return seconds
    raise InvalidField(field, "must be more than 0", "30s")

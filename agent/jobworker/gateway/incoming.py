"""Requests of the contract as the agent's own types, checked; errors name fields as the contract does."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import signal
from dataclasses import replace
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from jobworker import codec, jobs, limits
from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.errors import InvalidField
from jobworker.gateway.changes import Watched
from jobworker.gateway.known import Wanted
from jobworker.gateway.order import Position
from jobworker.gateway.seek import View
from jobworker.gateway.watch import read_token
from jobworker.wire.callers import Caller
from jobworker.wire.messages import (
    SignalJob,
    StartJob,
    StopJob,
    UpdateJob,
    WriteStdin,
)

_NANOS = 1_000_000_000
DEFAULT_GRACE_MS = 10_000
DEFAULT_PAGE, MAX_PAGE = 100, 1_000

_STATES = {job_pb2.JobState.Value(f"JOB_STATE_{state.value}"): state for state in jobs.State}
_SOURCES = {
    pb.OUTPUT_SOURCE_UNSPECIFIED: None,
    pb.OUTPUT_SOURCE_STDOUT: jobs.Source.STDOUT,
    pb.OUTPUT_SOURCE_STDERR: jobs.Source.STDERR,
}
_FORMATS = {
    pb.OUTPUT_FORMAT_UNSPECIFIED: jobs.OutputFormat.BINARY,
    pb.OUTPUT_FORMAT_BINARY: jobs.OutputFormat.BINARY,
    pb.OUTPUT_FORMAT_TEXT: jobs.OutputFormat.TEXT,
    pb.OUTPUT_FORMAT_JSON: jobs.OutputFormat.JSON,
}
# timestamp.proto: 9999-12-31T23:59:59Z.
_MAX_SECONDS = 253_402_300_799
_MAX_PRINCIPAL = 400
_MAX_OFFSET = 2**63 - 1
_MAX_TOKEN = 80
_TOKEN = re.compile(r"([0-9]{1,19}):([0-9a-z-]{19})")


def start(caller: Caller, request: pb.StartRequest) -> StartJob:
    """What to run for whom.

    Raises:
        InvalidField: the first field that is wrong.
    """
    made = spec(request)
    key = request.idempotency_key
    # Of the whole specification, the environment's values included: those must not be stored to be compared.
    idempotency = jobs.Idempotency(key, hashlib.sha256(codec.dumps_sparse(made)).hexdigest() if key else "")
    idempotency.check()
    return StartJob(caller, made, idempotency, request.dry_run)


def spec(request: pb.StartRequest) -> jobs.JobSpec:
    """What to run.

    Raises:
        InvalidField: the first field that is wrong.
    """
    made = jobs.JobSpec(
        command=request.command,
        args=tuple(request.args),
        env=tuple(sorted(request.env.items())),
        workdir=request.workdir,
        limits=_limits(request.limits),
        timeout_ms=_timeout(request),
        labels=tuple(sorted(request.labels.items())),
        best_effort=request.best_effort,
        sandbox=request.sandbox,
        user=request.user,
        stdin=request.stdin,
        profile=request.profile,
        stdin_open=request.stdin_open,
        merge_stderr=request.merge_stderr,
    )
    made.check()
    return made


def _limits(asked: job_pb2.Limits) -> limits.Limits:
    values: dict[str, Any] = {}
    for kind in limits.KINDS:
        # Text, or a number; empty, or 0, for what is left out.
        if given := getattr(asked, kind.name):
            values[kind.field] = kind.read(str(given), f"limits.{kind.name}")
    return limits.Limits(**values)


def _timeout(request: pb.StartRequest) -> int:
    if not request.HasField("timeout"):
        return 0
    millis = _milliseconds(request.timeout, "timeout", jobs.MAX_TIMEOUT_MS)
    if millis == 0:
        raise InvalidField("timeout", "is no time at all; leave it out for none", "30s")
    return millis


def _milliseconds(duration: Duration, field: str, maximum: int) -> int:
    """A duration, rounded up, so that a short one does not become none."""
    nanos = duration.seconds * _NANOS + duration.nanos
    if abs(duration.nanos) >= _NANOS or not 0 <= nanos <= maximum * 1_000_000:
        raise InvalidField(field, f"is not between 0 and {maximum // 1000} seconds", "30s")
    return -(-nanos // 1_000_000)


def stop(caller: Caller, request: pb.StopRequest) -> StopJob:
    """How to stop which job.

    Raises:
        InvalidField: the first field that is wrong.
    """
    grace_ms = DEFAULT_GRACE_MS
    if request.HasField("grace"):
        grace_ms = _milliseconds(request.grace, "grace", jobs.MAX_GRACE_MS)
    return StopJob(
        caller=caller,
        job_id=jobs.check_job_id(request.job_id),
        signal=_signal(request.signal or "TERM"),
        grace_ms=grace_ms,
        force=request.force,
    )


def signal_job(caller: Caller, request: pb.SignalRequest) -> SignalJob:
    """Which signal to send to whom.

    Raises:
        InvalidField: the first field that is wrong.
    """
    return SignalJob(caller, jobs.check_job_id(request.job_id), _signal(request.signal), request.all)


def stdin(caller: Caller, request: pb.WriteStdinRequest) -> WriteStdin:
    """What to write first to which job's standard input.

    Raises:
        InvalidField: the first field that is wrong.
    """
    offset = request.offset if request.HasField("offset") else None
    if offset is not None and offset > _MAX_OFFSET:
        raise InvalidField("offset", f"{offset} is more than {_MAX_OFFSET}", "0")
    return WriteStdin(caller, jobs.check_job_id(request.job_id), offset, _piece(request), request.end)


def more_stdin(first: WriteStdin, taken: int, request: pb.WriteStdinRequest) -> WriteStdin:
    """What to write behind that.

    Raises:
        InvalidField: the first field that is wrong.
    """
    if request.job_id or request.HasField("offset"):
        field = "job_id" if request.job_id else "offset"
        raise InvalidField(field, "is for a call's first message alone; leave it out of the others")
    return replace(first, offset=taken, data=_piece(request), end=request.end)


def _piece(request: pb.WriteStdinRequest) -> bytes:
    if len(request.data) > jobs.MAX_STDIN_BYTES:
        raise InvalidField("data", f"has more than {jobs.MAX_STDIN_BYTES} bytes; send it in several messages")
    return request.data


def update(caller: Caller, request: pb.UpdateRequest) -> UpdateJob:
    """Which limits to give to which job.

    Raises:
        InvalidField: the first field that is wrong.
    """
    asked = _limits(request.limits)
    asked.check(alone=False)
    return UpdateJob(caller, jobs.check_job_id(request.job_id), asked, request.force)


def _signal(name: str) -> int:
    number = signal.Signals.__members__.get(f"SIG{name.upper().removeprefix('SIG')}")
    if number is None:
        raise InvalidField("signal", f"{name!r:.40} is not a signal's name", "TERM")
    return number


def source(request: pb.StreamRequest) -> jobs.Source | None:
    """Whose output; None for both.

    Raises:
        InvalidField: this agent knows no such source.
    """
    if request.source not in _SOURCES:
        raise InvalidField("source", f"{request.source} is not a source that this agent knows", "STDOUT")
    return _SOURCES[request.source]


def output_format(request: pb.StreamRequest) -> jobs.OutputFormat:
    """In what form to tell it.

    Raises:
        InvalidField: this agent knows no such format.
    """
    if request.format not in _FORMATS:
        raise InvalidField("format", f"{request.format} is not a format that this agent knows", "TEXT")
    return _FORMATS[request.format]


def view(request: pb.StreamRequest) -> View:
    """Which part of the output.

    Raises:
        InvalidField: the first field that is wrong, alone or beside the others.
    """
    tail_lines = request.tail_lines if request.HasField("tail_lines") else None
    since = request.since if request.HasField("since") else None
    until = request.until if request.HasField("until") else None
    made = View(request.offset, tail_lines, *_span(since, until))
    if made.tail_lines is not None and made.tail_lines > jobs.MAX_TAIL_LINES:
        raise InvalidField("tail_lines", f"{made.tail_lines} is more than {jobs.MAX_TAIL_LINES}", "100")
    if made.offset and made.relative:
        field = "since" if made.tail_lines is None else "tail_lines"
        raise InvalidField(field, "says where to begin, and so does offset; give one of them", "offset 0")
    if made.until_ns is not None and request.follow:
        raise InvalidField("until", "ends the stream, and follow does not; give one of them", "follow false")
    return made


def _span(since: Timestamp | None, until: Timestamp | None, prefix: str = "") -> tuple[int | None, int | None]:
    """The times in two fields that are called so behind a prefix; None for what was not given."""
    begin = None if since is None else _moment(since, f"{prefix}since")
    end = None if until is None else _moment(until, f"{prefix}until")
    if begin is not None and end is not None and end <= begin:
        example = f"{prefix}since 2026-01-31T08:00:00Z, {prefix}until 2026-01-31T09:00:00Z"
        raise InvalidField(f"{prefix}until", f"is not after {prefix}since", example)
    return begin, end


def _moment(timestamp: Timestamp, field: str) -> int:
    """Nanoseconds of Unix time, within what a timestamp may be: the years 1970 to 9999 of it."""
    if not (0 <= timestamp.seconds <= _MAX_SECONDS and 0 <= timestamp.nanos < _NANOS):
        raise InvalidField(field, "is not between the years 1970 and 9999", "2026-01-31T08:00:00Z")
    return timestamp.seconds * _NANOS + timestamp.nanos


def wanted(request: pb.ListRequest) -> Wanted:
    """Which jobs to list.

    Raises:
        InvalidField: the first field that is wrong.
    """
    found = _filters(request)
    prefix = jobs.check_job_id_prefix(request.id_prefix) if request.id_prefix else ""
    since = request.created_since if request.HasField("created_since") else None
    until = request.created_until if request.HasField("created_until") else None
    since_ns, until_ns = _span(since, until, "created_")
    return replace(found, id_prefix=prefix, since_ns=since_ns, until_ns=until_ns)


def _filters(request: pb.ListRequest | pb.WatchRequest) -> Wanted:
    if len(request.labels) > jobs.MAX_LABELS:
        raise InvalidField("labels", f"has {len(request.labels)} entries, more than {jobs.MAX_LABELS}")
    if len(request.principal) > _MAX_PRINCIPAL:
        raise InvalidField("principal", f"has more than {_MAX_PRINCIPAL} characters")
    return Wanted(
        states=frozenset(_state(number) for number in request.states),
        labels=tuple(request.labels.items()),
        principal=request.principal,
    )


def watched(request: pb.WatchRequest) -> Watched:
    """Which jobs to watch.

    Raises:
        InvalidField: the first field that is wrong.
    """
    if len(request.job_ids) > jobs.MAX_WATCHED:
        problem = f"has {len(request.job_ids)} items, more than {jobs.MAX_WATCHED}; watch by a label, or all"
        raise InvalidField("job_ids", problem)
    ids = frozenset(jobs.check_job_id(text, f"job_ids[{i}]") for i, text in enumerate(request.job_ids))
    return Watched(ids, _filters(request))


def resumed(request: pb.WatchRequest) -> tuple[str, int] | None:
    """Epoch and revision behind which to watch; None for from now on.

    Raises:
        InvalidField: it is no token, or there is to be a snapshot as well.
    """
    if not request.resume_token:
        return None
    if request.snapshot:
        raise InvalidField(
            "snapshot", "begins anew, and resume_token does not; give one of them", "snapshot false"
        )
    return read_token(request.resume_token)


def _state(number: job_pb2.JobState.ValueType) -> jobs.State:
    if number not in _STATES:
        raise InvalidField("states", f"{number} is not a state that this agent knows", "RUNNING")
    return _STATES[number]


def page_size(request: pb.ListRequest) -> int:
    return min(request.page_size or DEFAULT_PAGE, MAX_PAGE)


def page_token(position: Position) -> str:
    """Where a page ended, as clients give it back. Jobs that come and go do not move it."""
    created_ns, job_id = position
    return base64.urlsafe_b64encode(f"{created_ns}:{job_id}".encode()).decode()


def position(token: str) -> Position | None:
    """Where the page before ended; None for the first page.

    Raises:
        InvalidField: it is not a token of `page_token`.
    """
    if not token:
        return None
    if len(token) > _MAX_TOKEN:
        raise InvalidField("page_token", "is too long to be one of this agent")
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    match = _TOKEN.fullmatch(text)
    found = (int(match[1]), match[2]) if match else None
    # There is one way to write a position.
    if found is None or page_token(found) != token:
        raise InvalidField("page_token", "is not a next_page_token of this agent")
    return found

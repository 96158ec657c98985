"""Errors as gRPC statuses: one table, and nothing of an error that is not in it reaches a client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped] # has no types
from grpc_status import rpc_status  # type: ignore[import-untyped] # likewise

from jobworker import errors

DOMAIN = "jobworker"

# Statuses travel in trailers, of which a peer takes 8 KiB.
_MAX_MESSAGE, _MAX_FIELD = 600, 250
_RETRY_MS = 1_000


@dataclass(frozen=True, slots=True)
class Rule:
    """How one type of error is told.

    Attributes:
        reason: stable and made for programs.
        public: clients get the error's own text and fields.
    """

    code: grpc.StatusCode
    reason: str
    public: bool = True


_INTERNAL = Rule(grpc.StatusCode.INTERNAL, "INTERNAL", public=False)

RULES: Mapping[type[errors.JobWorkerError], Rule] = MappingProxyType(
    {
        errors.InvalidField: Rule(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        errors.JobNotFound: Rule(grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND"),
        errors.JobAlreadyEnded: Rule(grpc.StatusCode.FAILED_PRECONDITION, "JOB_ALREADY_ENDED"),
        errors.JobNotEnded: Rule(grpc.StatusCode.FAILED_PRECONDITION, "JOB_NOT_ENDED"),
        errors.MainProcessEnded: Rule(grpc.StatusCode.FAILED_PRECONDITION, "MAIN_PROCESS_ENDED"),
        errors.StdinEnded: Rule(grpc.StatusCode.FAILED_PRECONDITION, "STDIN_ENDED"),
        errors.StdinOffset: Rule(grpc.StatusCode.FAILED_PRECONDITION, "STDIN_OFFSET"),
        errors.StdinTooLarge: Rule(grpc.StatusCode.OUT_OF_RANGE, "STDIN_TOO_LARGE"),
        errors.WatchExpired: Rule(grpc.StatusCode.FAILED_PRECONDITION, "WATCH_EXPIRED"),
        errors.IdempotencyConflict: Rule(grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_CONFLICT"),
        errors.StartFailed: Rule(grpc.StatusCode.FAILED_PRECONDITION, "START_FAILED"),
        errors.LimitUnsupported: Rule(grpc.StatusCode.FAILED_PRECONDITION, "LIMIT_UNSUPPORTED"),
        errors.LimitRefused: Rule(grpc.StatusCode.FAILED_PRECONDITION, "LIMIT_REFUSED"),
        errors.SandboxUnsupported: Rule(grpc.StatusCode.FAILED_PRECONDITION, "SANDBOX_UNSUPPORTED"),
        errors.PolicyDenied: Rule(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED"),
        errors.UserDenied: Rule(grpc.StatusCode.FAILED_PRECONDITION, "USER_DENIED"),
        errors.CapExceeded: Rule(grpc.StatusCode.RESOURCE_EXHAUSTED, "CAP_EXCEEDED"),
        errors.QuotaExceeded: Rule(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
        errors.OutputDropped: Rule(grpc.StatusCode.DATA_LOSS, "OUTPUT_DROPPED"),
        errors.Unauthenticated: Rule(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
        errors.PermissionDenied: Rule(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
        errors.AgentUnavailable: Rule(grpc.StatusCode.UNAVAILABLE, "AGENT_UNAVAILABLE"),
        errors.AgentDraining: Rule(grpc.StatusCode.UNAVAILABLE, "AGENT_DRAINING"),
        errors.HostFault: Rule(grpc.StatusCode.INTERNAL, "HOST_FAULT"),
        # Between the agent's own processes and files: nothing that a client could act on.
        errors.ProtocolError: _INTERNAL,
        errors.PkiProblem: _INTERNAL,
        errors.TlsProblem: _INTERNAL,
        errors.UpgradeRefused: _INTERNAL,
    }
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A status as a call ends with it."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, bytes], ...]


def rule_of(error: Exception) -> Rule:
    """The error's row of the table; INTERNAL, with its text kept back, for any other exception."""
    return RULES.get(type(error), _INTERNAL) if isinstance(error, errors.JobWorkerError) else _INTERNAL


def answer(error: Exception) -> Answer:
    """The status that tells a client of this error."""
    rule = rule_of(error)
    text = _cut(str(error), _MAX_MESSAGE) if rule.public else "internal error; the agent's log tells more"
    fields = {name: _cut(str(value), _MAX_FIELD) for name, value in vars(error).items()} if rule.public else {}
    info = error_details_pb2.ErrorInfo(reason=rule.reason, domain=DOMAIN, metadata=fields)
    status = rpc_status.to_status(
        status_pb2.Status(
            code=code_pb2.Code.Value(rule.code.name),
            message=text,
            details=[_packed(detail) for detail in (info, *_more(error))],
        )
    )
    return Answer(status.code, status.details, tuple(status.trailing_metadata))


def _more(error: Exception) -> tuple[Message, ...]:
    match error:
        case errors.InvalidField():
            problem = str(error).removeprefix(f"{error.field}: ")
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=_cut(error.field, _MAX_FIELD), description=_cut(problem, _MAX_MESSAGE)
            )
            return (error_details_pb2.BadRequest(field_violations=[violation]),)
        case errors.CapExceeded():
            return (_retry(error.retry_seconds * 1000),)
        case errors.QuotaExceeded() if error.retry_ms:
            return (_retry(error.retry_ms),)
        case errors.AgentUnavailable():
            return (_retry(_RETRY_MS),)
        case _:
            return ()


def _retry(millis: int) -> Message:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(millis)
    message: Message = info
    return message


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _cut(text: str, size: int) -> str:
    """The text in up to `size` bytes of UTF-8, with what is not text replaced."""
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")

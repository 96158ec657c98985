"""Errors as statuses: every one has a row, and nothing else gets out."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # has no types

from jobworker import errors
from jobworker.gateway import status

OWN = [cls for cls in errors.JobWorkerError.__subclasses__() if cls.__module__ == errors.__name__]
SAMPLES: list[errors.JobWorkerError] = [
    errors.InvalidField("limits.cpu", "is wrong", "50%"),
    errors.JobNotFound("k7f3-9m2q-x4tz-b1cd"),
    errors.JobAlreadyEnded("k7f3-9m2q-x4tz-b1cd", "EXITED"),
    errors.JobNotEnded("k7f3-9m2q-x4tz-b1cd"),
    errors.MainProcessEnded("k7f3-9m2q-x4tz-b1cd"),
    errors.StdinEnded("k7f3-9m2q-x4tz-b1cd", 12, "the job has ended"),
    errors.StdinOffset("k7f3-9m2q-x4tz-b1cd", 3, 12),
    errors.StdinTooLarge("k7f3-9m2q-x4tz-b1cd", 100, 99),
    errors.WatchExpired("jobs were removed"),
    errors.AgentDraining(),
    errors.IdempotencyConflict("deploy-7", "k7f3-9m2q-x4tz-b1cd"),
    errors.StartFailed("exec", "ENOENT", "/x", "no such file"),
    errors.LimitRefused("memory", "the kernel refuses it: EBUSY"),
    errors.LimitUnsupported("cpu", "no controller"),
    errors.SandboxUnsupported("strict", "landlock", "EOPNOTSUPP"),
    errors.PolicyDenied("Start", "operators", "limits.memory is 2G, more than 1G"),
    errors.UserDenied("www-data", "the agent is not root"),
    errors.CapExceeded("active jobs", 10, 7),
    errors.QuotaExceeded("calls", 256, 256, 1_500),
    errors.OutputDropped("k7f3-9m2q-x4tz-b1cd", 5, "gone"),
    errors.Unauthenticated("expired"),
    errors.PermissionDenied("/a/b", "WRITER", "READER"),
    errors.AgentUnavailable("restarting"),
    errors.HostFault("write", "ENOSPC", "disk full"),
]
PUBLIC = {
    "InvalidField": ("INVALID_ARGUMENT", "INVALID_FIELD"),
    "JobNotFound": ("NOT_FOUND", "JOB_NOT_FOUND"),
    "IdempotencyConflict": ("ALREADY_EXISTS", "IDEMPOTENCY_CONFLICT"),
    "JobAlreadyEnded": ("FAILED_PRECONDITION", "JOB_ALREADY_ENDED"),
    "JobNotEnded": ("FAILED_PRECONDITION", "JOB_NOT_ENDED"),
    "MainProcessEnded": ("FAILED_PRECONDITION", "MAIN_PROCESS_ENDED"),
    "StdinEnded": ("FAILED_PRECONDITION", "STDIN_ENDED"),
    "StdinOffset": ("FAILED_PRECONDITION", "STDIN_OFFSET"),
    "StdinTooLarge": ("OUT_OF_RANGE", "STDIN_TOO_LARGE"),
    "WatchExpired": ("FAILED_PRECONDITION", "WATCH_EXPIRED"),
    "AgentDraining": ("UNAVAILABLE", "AGENT_DRAINING"),
    "StartFailed": ("FAILED_PRECONDITION", "START_FAILED"),
    "LimitRefused": ("FAILED_PRECONDITION", "LIMIT_REFUSED"),
    "LimitUnsupported": ("FAILED_PRECONDITION", "LIMIT_UNSUPPORTED"),
    "SandboxUnsupported": ("FAILED_PRECONDITION", "SANDBOX_UNSUPPORTED"),
    "PolicyDenied": ("PERMISSION_DENIED", "POLICY_DENIED"),
    "UserDenied": ("FAILED_PRECONDITION", "USER_DENIED"),
    "CapExceeded": ("RESOURCE_EXHAUSTED", "CAP_EXCEEDED"),
    "QuotaExceeded": ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
    "OutputDropped": ("DATA_LOSS", "OUTPUT_DROPPED"),
    "Unauthenticated": ("UNAUTHENTICATED", "UNAUTHENTICATED"),
    "PermissionDenied": ("PERMISSION_DENIED", "PERMISSION_DENIED"),
    "AgentUnavailable": ("UNAVAILABLE", "AGENT_UNAVAILABLE"),
    "HostFault": ("INTERNAL", "HOST_FAULT"),
}


def details(answer: status.Answer) -> dict[str, Any]:
    ((key, value),) = answer.trailers
    assert key == "grpc-status-details-bin"
    whole = status_pb2.Status.FromString(value)
    assert (whole.code, whole.message) == (answer.code.value[0], answer.message)
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
    by_url = {kind.DESCRIPTOR.full_name: kind for kind in kinds}
    unpacked = (by_url[any_.TypeName()].FromString(any_.value) for any_ in whole.details)
    return {type(detail).__name__: detail for detail in unpacked}


@pytest.mark.parametrize("kind", OWN)
def test_every_error_has_a_row(kind: type[errors.JobWorkerError]) -> None:
    assert kind in status.RULES


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_code_reason_and_fields(error: errors.JobWorkerError) -> None:
    answer = status.answer(error)
    info = details(answer)["ErrorInfo"]
    assert (answer.code.name, info.reason) == PUBLIC[type(error).__name__]
    assert info.domain == "jobworker"
    assert dict(info.metadata) == {name: str(value) for name, value in vars(error).items()}
    assert answer.message == str(error)


def test_the_samples_are_all_that_is_public() -> None:
    assert {type(error) for error in SAMPLES} == {kind for kind, rule in status.RULES.items() if rule.public}


def test_a_wrong_field_is_named_as_such() -> None:
    (violation,) = details(status.answer(SAMPLES[0]))["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("limits.cpu", "is wrong; for example 50%")


def test_when_to_try_again_is_told() -> None:
    retry: dict[type[errors.JobWorkerError], Any] = {
        type(error): details(status.answer(error)).get("RetryInfo") for error in SAMPLES
    }
    assert retry.pop(errors.CapExceeded).retry_delay.seconds == 7
    assert retry.pop(errors.QuotaExceeded).retry_delay.ToMilliseconds() == 1_500
    assert "RetryInfo" not in details(status.answer(errors.QuotaExceeded("streams", 7, 7, 0)))
    assert retry.pop(errors.AgentUnavailable).retry_delay.seconds >= 1
    assert set(retry.values()) == {None}


@pytest.mark.parametrize(
    "error",
    [ValueError("secret"), errors.ProtocolError("secret"), KeyError("secret"), errors.PkiProblem("secret", "x")],
)
def test_other_errors_keep_their_text_to_themselves(error: Exception) -> None:
    answer = status.answer(error)
    assert answer.code is grpc.StatusCode.INTERNAL
    assert details(answer)["ErrorInfo"].reason == "INTERNAL"
    assert "secret" not in repr(answer)


def test_an_error_that_is_new_is_internal() -> None:
    class New(errors.JobWorkerError):
        def __str__(self) -> str:
            return "secret"

    try:
        assert "secret" not in repr(status.answer(New()))
        assert status.answer(New()).code is grpc.StatusCode.INTERNAL
    finally:
        del New


@pytest.mark.parametrize("letter", ["x", "é", "\ud800", "\x00", "\U0001f600"])
def test_a_status_fits_the_trailers_of_a_peer(letter: str) -> None:
    error = errors.StartFailed(letter * 100_000, letter * 100_000, letter * 100_000, letter * 100_000)
    answer = status.answer(error)
    # grpc writes each byte that is not plain ASCII as three, and base64 makes four of three.
    written = 3 * len(answer.message.encode()) + sum(len(value) * 4 // 3 for _, value in answer.trailers)
    assert written < 8192 - 1024

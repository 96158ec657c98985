"""gRPC's errors as one typed exception."""

from __future__ import annotations

from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # comes without types
from grpc_status import rpc_status  # type: ignore[import-untyped] # likewise

from jobworker.client.failures import CallFailed, FieldViolation


def failure_of(error: grpc.RpcError, request_id: str) -> CallFailed:
    """What the agent says went wrong (google.rpc.Status with ErrorInfo, BadRequest, RetryInfo), or grpc itself."""
    # An error that a call raises is the call itself.
    call = cast("grpc.Call", error)
    status = _rich_status(call)
    info = _detail(status, error_details_pb2.ErrorInfo())
    bad_request = _detail(status, error_details_pb2.BadRequest())
    retry = _detail(status, error_details_pb2.RetryInfo()).retry_delay
    return CallFailed(
        code=call.code().name,
        message=call.details() or "",
        reason=info.reason,
        metadata=dict(info.metadata),
        violations=tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations),
        retry_seconds=max(0.0, retry.seconds + retry.nanos / 1e9),
        request_id=request_id,
    )


def _rich_status(call: grpc.Call) -> Any:
    try:
        return rpc_status.from_call(call) or status_pb2.Status()
    except (ValueError, DecodeError):
        # Not a Status, or one that contradicts the plain status: then the plain one is all there is.
        return status_pb2.Status()


def _detail(status: Any, message: Any) -> Any:
    """The status's detail of this type; the message as it came, empty, where there is none."""
    for packed in status.details:
        if packed.Is(message.DESCRIPTOR):
            try:
                packed.Unpack(message)
            except DecodeError:
                # As with a status that is none: what can be read of it is all there is.
                message.Clear()
            break
    return message

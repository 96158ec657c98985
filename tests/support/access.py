"""Every call of the contract, and how it ends for whom."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped] # has no types

from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import gateway

SERVICES = (pb.DESCRIPTOR.services_by_name["JobWorkerService"], health_pb2.DESCRIPTOR.services_by_name["Health"])
METHODS = [f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods]
_WRITING = {"Start", "Stop", "Signal", "WriteStdin", "Update", "Delete", "Drain", "Undrain", "Reload"}

# How a call ends, in a word: its request is read, the role is not enough, nobody is to have such a certificate, or
# TLS lets nobody in.
READ, ROLE, NOBODY, NO_TLS = "yes", "role", "nobody", "tls"
_WORDS = {
    ("INVALID_ARGUMENT", "INVALID_FIELD"): READ,
    ("PERMISSION_DENIED", "PERMISSION_DENIED"): ROLE,
    ("UNAUTHENTICATED", "UNAUTHENTICATED"): NOBODY,
}


def writes(method: str) -> bool:
    """Whether a READER is not to call it."""
    return method.rpartition("/")[2] in _WRITING


def outcome(channel: grpc.Channel, method: str, metadata: Any = None, data: bytes = b"\xff") -> Any:
    """How a call ends. Its data are no request of any method, which is found out behind the gate."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    with pytest.raises(grpc.RpcError) as caught:
        call(data, timeout=30, metadata=metadata)
    return caught.value


def word(error: Any) -> str:
    if gateway.code(error) == "UNAVAILABLE":
        # Nobody has answered, and grpc itself gives no reasons.
        return NO_TLS
    said = gateway.code(error), gateway.reason(error)
    return _WORDS.get(said, str(said))

"""The table of rules against the contract's own descriptors."""

from __future__ import annotations

from typing import Any

import pytest
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped] # has no types

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.errors import PermissionDenied
from jobworker.gateway import access, health, servicer
from jobworker.identity import Principal, Role

SERVICES: dict[Any, type[Any]] = {
    pb.DESCRIPTOR.services_by_name["JobWorkerService"]: servicer.JobWorker,
    health_pb2.DESCRIPTOR.services_by_name["Health"]: health.Health,
}
METHODS = [method for service in SERVICES for method in service.methods]
READ_ONLY = {"Query", "Stream", "List", "GetAgentInfo", "Check", "Watch"}


def path(method: Any) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def allowed(method: str, role: Role) -> bool:
    try:
        access.authorise(method, Principal("spiffe://test/user/a", role, "1"))
    except PermissionDenied:
        return False
    return True


@pytest.mark.parametrize("method", METHODS, ids=path)
def test_every_call_has_a_rule(method: Any) -> None:
    assert path(method) in access.NEEDED


def test_there_is_no_rule_for_what_is_no_call() -> None:
    assert set(access.NEEDED) == {path(method) for method in METHODS}


@pytest.mark.parametrize("method", METHODS, ids=path)
def test_readers_may_what_changes_nothing_and_writers_may_all(method: Any) -> None:
    assert allowed(path(method), Role.READER) is (method.name in READ_ONLY)
    assert allowed(path(method), Role.WRITER)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("method", ["", "/", "/x.Y/Z", "Start", "/jobworker.api.v1.JobWorkerService/start"])
def test_what_is_not_in_the_table_is_refused(method: str, role: Role) -> None:
    assert not allowed(method, role)


@pytest.mark.parametrize("method", METHODS, ids=path)
def test_every_call_is_served(method: Any) -> None:
    implementation = SERVICES[method.containing_service]
    assert method.name in vars(implementation)


@pytest.mark.parametrize("method", METHODS, ids=path)
def test_clients_stream_only_where_answers_do(method: Any) -> None:
    """Of other calls the gate reads one request."""
    assert not method.client_streaming or method.server_streaming


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        access.NEEDED["/x.Y/Z"] = Role.READER  # type: ignore[index]

"""Who may call what: one table, and whatever is not in it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

from jobworker.errors import PermissionDenied
from jobworker.identity import Principal, Role
from jobworker.wire.messages import Caller

_JOBS = "/jobworker.api.v1.JobWorkerService"
_HEALTH = "/grpc.health.v1.Health"

NEEDED: Mapping[str, Role] = MappingProxyType(
    {
        f"{_JOBS}/Start": Role.WRITER,
        f"{_JOBS}/Stop": Role.WRITER,
        f"{_JOBS}/Signal": Role.WRITER,
        f"{_JOBS}/Delete": Role.WRITER,
        f"{_JOBS}/Query": Role.READER,
        f"{_JOBS}/Stream": Role.READER,
        f"{_JOBS}/List": Role.READER,
        f"{_JOBS}/Watch": Role.READER,
        f"{_JOBS}/GetAgentInfo": Role.READER,
        f"{_JOBS}/Drain": Role.WRITER,
        f"{_JOBS}/Undrain": Role.WRITER,
        f"{_HEALTH}/Check": Role.READER,
        f"{_HEALTH}/List": Role.READER,
        f"{_HEALTH}/Watch": Role.READER,
    }
)

# The authenticated caller, in the context of each call's own task; the gate sets it.
CALLER: ContextVar[Caller] = ContextVar("caller")


def authorise(method: str, principal: Principal) -> None:
    """Let the call through if the principal's role allows the method.

    Raises:
        PermissionDenied: it does not, or the table has no such method.
    """
    needed = NEEDED.get(method)
    if needed is None:
        raise PermissionDenied(method[:120], "NONE (this agent knows no such method)", principal.role.value)
    if not principal.role.includes(needed):
        raise PermissionDenied(method, needed.value, principal.role.value)

"""Who may call what: one table, and whatever is not in it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

from jobworker.errors import PermissionDenied
from jobworker.identity import Principal, Role
from jobworker.wire.callers import Caller

_JOBS = "/jobworker.api.v1.JobWorkerService"
_HEALTH = "/grpc.health.v1.Health"

NEEDED: Mapping[str, Role] = MappingProxyType(
    {
        f"{_JOBS}/Start": Role.WRITER,
        f"{_JOBS}/Stop": Role.WRITER,
        f"{_JOBS}/Signal": Role.WRITER,
        f"{_JOBS}/WriteStdin": Role.WRITER,
        f"{_JOBS}/Update": Role.WRITER,
        f"{_JOBS}/Delete": Role.WRITER,
        f"{_JOBS}/Query": Role.READER,
        f"{_JOBS}/Stream": Role.READER,
        f"{_JOBS}/List": Role.READER,
        f"{_JOBS}/Watch": Role.READER,
        f"{_JOBS}/GetAgentInfo": Role.READER,
        f"{_JOBS}/Drain": Role.WRITER,
        f"{_JOBS}/Undrain": Role.WRITER,
        f"{_JOBS}/Reload": Role.WRITER,
        f"{_HEALTH}/Check": Role.READER,
        f"{_HEALTH}/List": Role.READER,
        f"{_HEALTH}/Watch": Role.READER,
    }
)

# What ends jobs, and what tells whether the agent lives: let in whatever else their callers do.
URGENT = frozenset({f"{_JOBS}/Stop", f"{_JOBS}/Signal", f"{_HEALTH}/Check", f"{_HEALTH}/List"})

# As the policy's rules name calls.
_HEALTH_RPC = "Health"

# The authenticated caller, and as the supervisor is told of it, in the context of each call's own task, where
# the gate sets both.
PRINCIPAL: ContextVar[Principal] = ContextVar("principal")
CALLER: ContextVar[Caller] = ContextVar("caller")


def rpc_of(method: str) -> str:
    """What the policy calls a method: its name, or one for all of the health service."""
    service, _, name = method.rpartition("/")
    return _HEALTH_RPC if service == _HEALTH else name


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

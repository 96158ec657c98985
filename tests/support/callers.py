"""Callers, as a gateway names them to the supervisor."""

from __future__ import annotations

from jobworker.identity import Role
from jobworker.wire.callers import Caller


def caller(principal: str = "spiffe://test/user/w", role: Role = Role.WRITER) -> Caller:
    return Caller(principal, role, "1", "ipv4:127.0.0.1:1")

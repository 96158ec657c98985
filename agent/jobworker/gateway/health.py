"""grpc.health.v1: serving means that the supervisor is there and has reported its jobs.

On the library's generated classes, but not its servicer: there, one watcher that does not read holds a lock
that everyone else needs, and names of services that nobody has are kept.
"""

# ruff: noqa: N802 - the contract names its calls like this

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types

from jobworker.gateway.gate import Context
from jobworker.gateway.link import Lost
from jobworker.wire.messages import Synced

SERVICES = ("", "jobworker.api.v1.JobWorkerService")

_Status = health_pb2.HealthCheckResponse.ServingStatus


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # of a module without types
    """The health of the agent, for each of its services the same."""

    def __init__(self) -> None:
        self._serving = False
        self._changed = asyncio.Event()

    def apply(self, message: Any) -> None:
        """Take in what the supervisor said."""
        if isinstance(message, Synced | Lost):
            self._serving = isinstance(message, Synced)
            self._changed.set()
            self._changed.clear()

    def _status(self, service: str) -> Any:
        if service not in SERVICES:
            return _Status.Value("SERVICE_UNKNOWN")
        return _Status.Value("SERVING" if self._serving else "NOT_SERVING")

    async def Check(self, request: Any, context: Context) -> Any:
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this agent has no such service")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def List(self, _request: Any, _context: Context) -> Any:
        statuses = {name: health_pb2.HealthCheckResponse(status=self._status(name)) for name in SERVICES}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(self, request: Any, context: Context) -> None:
        told = None
        while True:
            status = self._status(request.service)
            if status == told:
                await self._changed.wait()
            else:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status

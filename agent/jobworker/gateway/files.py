"""The files that others keep for the agent: reading them anew, and which are not in force as they are now."""

from __future__ import annotations

import asyncio
import signal

import structlog

from jobworker.errors import JobWorkerError
from jobworker.gateway.link import SupervisorLink
from jobworker.gateway.mirror import Mirror
from jobworker.gateway.policies import Policies
from jobworker.gateway.trust import Trust
from jobworker.settings.schema import Settings
from jobworker.wire.messages import HostIs, ReadLimits

_log = structlog.get_logger()


class Files:
    """Certificates and revocations, which the gateway reads, policy and limits, which the supervisor does.

    Attributes:
        named: those that the settings name, by what they hold.
    """

    def __init__(
        self, settings: Settings, trust: Trust, policies: Policies, link: SupervisorLink, mirror: Mirror
    ) -> None:
        self._trust = trust
        self._policies = policies
        self._link = link
        self._mirror = mirror
        named = {
            "certificates": settings.tls.cert,
            "revocations": settings.tls.crl or settings.tls.revoked,
            "policy": settings.policy,
            "limits": settings.limits,
        }
        self.named = tuple(what for what, path in named.items() if path)

    async def read_again(self) -> None:
        """Whatever they look like from outside.

        Raises:
            AgentUnavailable: the supervisor is not there; what the gateway reads was read.
        """
        self._trust.read_again()
        await self._policies.read_again()
        await self._link.ask(ReadLimits(anyway=True), HostIs, repeatable=True)

    async def problems(self) -> dict[str, str]:
        """Why files as they are now are not in force, by what they hold.

        Raises:
            AgentUnavailable: the supervisor is not there.
        """
        # The limits file may have changed, and nobody have been held to it yet.
        await self._link.ask(ReadLimits(), HostIs, repeatable=True)
        host = await self._mirror.host()
        rules = {"policy": self._policies.problem, "limits": host.limits_problem}
        return self._trust.problems | {what: problem for what, problem in rules.items() if problem}

    def on_hangup(self) -> None:
        """Have SIGHUP do the same."""
        loop = asyncio.get_running_loop()
        reading: set[asyncio.Task[None]] = set()

        async def read_again() -> None:
            try:
                await self.read_again()
            except JobWorkerError as error:
                # The supervisor looks for itself when it is back.
                _log.warning("policy and limits: not read anew", problem=str(error))

        def begin() -> None:
            task = asyncio.ensure_future(read_again())
            reading.add(task)
            task.add_done_callback(reading.discard)

        signal.signal(signal.SIGHUP, lambda _number, _frame: loop.call_soon_threadsafe(begin))

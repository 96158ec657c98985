"""The policy in the gateway: what the supervisor has, which reads the file for both.

Looked at with each call, like certificates: a call that comes after the file has changed is judged by what is in
it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import structlog

from jobworker import file_stamp, policy
from jobworker.errors import AgentUnavailable, JobWorkerError
from jobworker.file_stamp import Stamp
from jobworker.gateway.link import PATIENCE_SECONDS, SupervisorLink
from jobworker.policy import Policy
from jobworker.rulebook import Rulebook
from jobworker.settings.schema import Settings
from jobworker.wire.messages import PolicyIs, ReadPolicy, Welcome

_log = structlog.get_logger()


class Policies:
    """The policy in force, as the supervisor told of it last.

    Attributes:
        problem: why the policy file as it is now is not in force; empty if it is.
    """

    def __init__(self, settings: Settings, link: SupervisorLink) -> None:
        self._path = settings.policy
        self._link = link
        self._policy: Policy | None = None
        self._rulebook: Rulebook | None = None
        self._known = asyncio.Event()
        self._seen: Stamp = ()
        self._reading: asyncio.Task[None] | None = None
        self.problem = ""
        if not self._path:
            # What holds without a policy is known without the supervisor.
            self._take(policy.default(settings.isolation.host_for, settings.isolation.default))

    def apply(self, message: Any) -> None:
        """Take in what the supervisor said."""
        if isinstance(message, Welcome):
            message = message.policy
        if isinstance(message, PolicyIs):
            if message.problem != self.problem:
                self.problem = message.problem
                _log.warning("policy: the file cannot be used", problem=message.problem)
            if message.policy != self._policy:
                self._take(message.policy)
                _log.info("policy: in force", rules=len(message.policy.rules))

    def _take(self, rules: Policy) -> None:
        self._policy, self._rulebook = rules, Rulebook(rules)
        self._known.set()

    async def current(self) -> Rulebook:
        """The policy, after a look at the file.

        Raises:
            AgentUnavailable: the supervisor has not told of any.
        """
        if self._path and (seen := file_stamp.of(self._path)) != self._seen:
            self._seen = seen
            # What is not known at the start comes by itself.
            if self._rulebook:
                self._reading = asyncio.create_task(self._read())
        if self._reading:
            await asyncio.wait((self._reading,), timeout=PATIENCE_SECONDS)
        if self._rulebook is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._known.wait(), PATIENCE_SECONDS)
        return self.last

    @property
    def last(self) -> Rulebook:
        """The policy that was told of last.

        Raises:
            AgentUnavailable: none was.
        """
        if self._rulebook is None:
            raise AgentUnavailable("the supervisor has not told of its policy yet")
        return self._rulebook

    async def _read(self) -> None:
        try:
            await self._link.ask(ReadPolicy(), PolicyIs, repeatable=True)
        except JobWorkerError as error:
            # The supervisor looks for itself when it is back.
            _log.warning("policy: not read anew", problem=str(error))
        finally:
            if self._reading is asyncio.current_task():
                self._reading = None

    async def read_again(self) -> None:
        """Have the supervisor read the file, whatever it looks like from outside.

        Raises:
            AgentUnavailable: the supervisor is not there.
        """
        if self._path:
            await self._link.ask(ReadPolicy(anyway=True), PolicyIs, repeatable=True)

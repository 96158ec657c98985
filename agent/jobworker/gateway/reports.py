"""What the gateway tells the audit trail: every call that was let in or refused, and how it ended.

Calls never wait for it. Reports are gathered and sent in one message at a time; while the supervisor is away they
wait in bounded number, and what there is no room for is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections import deque
from typing import NoReturn

import structlog

from jobworker.errors import JobWorkerError
from jobworker.gateway.link import SupervisorLink
from jobworker.wire.callers import CallReport
from jobworker.wire.messages import MAX_REPORTS, Done, ReportCalls

_MAX_WAITING = 10_000
# What comes within this time goes in one message.
_GATHER_SECONDS = 0.2
_AGAIN_SECONDS = 0.5
_LAST_SECONDS = 2.0
# Of what a peer can choose freely; a message of reports must fit a frame whatever they hold.
_MAX_TEXT = 200

_log = structlog.get_logger()


class Reports:
    """Takes reports in, and sends them on."""

    def __init__(self, link: SupervisorLink) -> None:
        self._link = link
        self._waiting: deque[CallReport] = deque()
        self._dropped = 0
        self._problem = ""
        self._some = asyncio.Event()
        self._prefix = os.urandom(4).hex()
        self._numbers = itertools.count(1)

    def new_call(self) -> str:
        """A name for a call that no other one of this host has, by any likelihood."""
        return f"{self._prefix}-{next(self._numbers)}"

    def add(self, report: CallReport) -> None:
        """Take a report in; never waits."""
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.append(report)
        else:
            if not self._dropped:
                _log.warning("calls not reported to the audit trail: too many wait")
            self._dropped += 1
        self._some.set()

    async def run(self) -> NoReturn:
        """Send what comes; ends by being cancelled."""
        while True:
            await self._some.wait()
            if len(self._waiting) < MAX_REPORTS:
                await asyncio.sleep(_GATHER_SECONDS)
            if not await self._send():
                await asyncio.sleep(_AGAIN_SECONDS)

    async def finish(self) -> None:
        """Send what is left, if the supervisor is there and takes it soon."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                while self._link.connected and self._some.is_set() and await self._send():
                    pass

    async def _send(self) -> bool:
        """Send one message; False if the supervisor did not say that it has it. It may get it twice then."""
        batch, dropped = tuple(itertools.islice(self._waiting, MAX_REPORTS)), self._dropped
        try:
            await self._link.ask(ReportCalls(batch, dropped), Done, repeatable=False)
        except JobWorkerError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _log.warning("calls not reported to the audit trail yet", problem=self._problem)
            return False
        self._problem = ""
        for _ in batch:
            self._waiting.popleft()
        self._dropped -= dropped
        if not self._waiting and not self._dropped:
            self._some.clear()
        return True


def clip(text: str) -> str:
    """What a peer has chosen, so far as a report has room for it."""
    return text[:_MAX_TEXT]

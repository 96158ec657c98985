"""What one principal may have of the gateway at once, and all of them together.

Every call is in one of three lanes, each with bounds of its own: whatever fills one leaves room in the others, so
that what ends a job, and what tells of the agent's health, is answered beside any flood of other calls.
"""

from __future__ import annotations

import enum
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from jobworker.budget import Budget
from jobworker.errors import CapExceeded, JobWorkerError, QuotaExceeded
from jobworker.gateway.access import URGENT
from jobworker.settings.schema import MAX_CALLS, MAX_STREAMS, QuotaSettings

# Stop waits for its job, and who has many jobs may stop them all at once.
_MAX_URGENT, _URGENT_EACH = 2_048, 1_024
# All that the lanes let in together.
MAX_UNDER_WAY = MAX_STREAMS + MAX_CALLS + _MAX_URGENT

_MAX_ACCOUNTS = 4_096
# Calls end in milliseconds, and others wait as well.
_CALL_RETRY_MS = 200
_CAP_RETRY_SECONDS = 1
# Refusals of one principal that log and audit trail hear of, and how many at once; of all others only the number.
_TOLD_PER_SECOND, _TOLD_AT_ONCE = 0.2, 5
# Refusals that one principal is told a second, so many at once before, and how long one waits at the most.
_REFUSED_PER_SECOND, _REFUSED_AT_ONCE, _LONGEST_REFUSAL = 20, 50, 20.0
# Refusals that wait to be told, of all principals and of one.
MAX_HELD_BACK, _HELD_BACK_EACH = 4_096, 1_024
# Messages of a principal's calls behind each one's first, which are no calls and are never refused: they wait.
_MESSAGES_PER_SECOND = 2_000
# For refusals by the agent's own bounds, which no principal's quota has.
_OF_THE_AGENT = "agent"


class Lane(enum.Enum):
    """A kind of calls, by the name of the quota for how many of them one principal may have under way."""

    STREAMS = "streams"
    CALLS = "calls"
    URGENT = "urgent_calls"


_TOTALS = {
    Lane.STREAMS: ("open streams", MAX_STREAMS),
    Lane.CALLS: ("calls under way", MAX_CALLS),
    Lane.URGENT: ("calls to Stop, Signal or health under way", _MAX_URGENT),
}


def lane_of(method: str, *, streaming: bool) -> Lane:
    if streaming:
        return Lane.STREAMS
    return Lane.URGENT if method in URGENT else Lane.CALLS


class _Pace:
    """How often calls come, held to a budget."""

    def __init__(self, quota: str, rate: int, burst: int, now: Callable[[], float]) -> None:
        self._quota = quota
        self._rate = rate
        self._now = now
        self.budget = Budget(rate, burst, now)
        self._second = int(now())
        self._before = self._in_this = 0

    def refusal(self) -> QuotaExceeded | None:
        """Count one more call; why it is not to be let in, if so."""
        second = int(self._now())
        if second != self._second:
            self._before = self._in_this if second == self._second + 1 else 0
            self._second, self._in_this = second, 0
        self._in_this += 1
        if self.budget.take():
            return None
        asked = max(self._before, self._in_this - 1)
        # All that are refused come back together: not for one call's time, but for that of a tenth of a second.
        retry_ms = max(math.ceil(self.budget.wait * 1000), 100)
        return QuotaExceeded(self._quota, self._rate, asked, retry_ms)


@dataclass(slots=True)
class _Account:
    """What the gateway knows of a principal.

    Attributes:
        paces: how often calls come, by lane; none where the settings have no bound.
        under_way: calls by lane.
        messages: bounds how often further messages of its calls are read.
        telling: bounds what is told of refusals.
        untold: refusals since the last one that was told.
        refusing: bounds how often the principal itself is told of one.
        held_back: refusals that it is not told yet.
    """

    paces: dict[Lane, _Pace]
    messages: Budget
    telling: Budget
    refusing: Budget
    under_way: Counter[Lane] = field(default_factory=Counter)
    untold: int = 0
    held_back: int = 0


class Quotas:
    """Keeps an account for each principal that has called of late.

    Args:
        settings: what one principal may have.
        now: a clock, in seconds.

    Attributes:
        under_way: calls by lane.
        refused: how many were refused, by quota.
        held_back: refusals that their callers are not told yet.
    """

    def __init__(self, settings: QuotaSettings, now: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._each = {Lane.STREAMS: settings.streams, Lane.CALLS: settings.calls, Lane.URGENT: _URGENT_EACH}
        self._now = now
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self.under_way: Counter[Lane] = Counter()
        self.refused: Counter[str] = Counter()
        self.held_back = 0

    @contextmanager
    def hold(self, principal: str, lane: Lane) -> Iterator[None]:
        """Let a call of a principal in, for as long as it lasts.

        Raises:
            QuotaExceeded: the principal has too many.
            CapExceeded: all together have.
        """
        account = self._account(principal)
        if refusal := self._refusal(account, lane):
            raise refusal
        for counter in (account.under_way, self.under_way):
            counter[lane] += 1
        try:
            yield
        finally:
            for counter in (account.under_way, self.under_way):
                counter[lane] -= 1

    def _refusal(self, account: _Account, lane: Lane) -> JobWorkerError | None:
        have, may_have = account.under_way[lane], self._each[lane]
        if have >= may_have:
            retry_ms = 0 if lane is Lane.STREAMS else _CALL_RETRY_MS
            return QuotaExceeded(lane.value, may_have, have, retry_ms)
        cap, total = _TOTALS[lane]
        if self.under_way[lane] >= total:
            return CapExceeded(cap, total, _CAP_RETRY_SECONDS)
        # Last, since only calls that are let in are taken off a budget.
        return account.paces[lane].refusal() if lane in account.paces else None

    def delay(self, principal: str) -> float:
        """For how long a call's next message is not to be read yet, in seconds; 0 counts it as read."""
        messages = self._account(principal).messages
        return 0.0 if messages.take() else messages.wait

    def tell(self, principal: str, error: QuotaExceeded | CapExceeded) -> int | None:
        """Count a refusal; how many came since the last one that was told, or None if this is not to be told."""
        self.refused[error.quota if isinstance(error, QuotaExceeded) else _OF_THE_AGENT] += 1
        account = self._account(principal)
        if not account.telling.take():
            account.untold += 1
            return None
        untold, account.untold = account.untold, 0
        return untold

    @contextmanager
    def hold_back(self, principal: str) -> Iterator[float]:
        """In how many seconds a refusal is to be told to its caller, so that a flood of calls is none of answers.

        At once if many are held back already: those take up room themselves.
        """
        account = self._account(principal)
        if account.held_back >= _HELD_BACK_EACH or self.held_back >= MAX_HELD_BACK:
            yield 0.0
            return
        account.held_back, self.held_back = account.held_back + 1, self.held_back + 1
        try:
            yield account.refusing.reserve(_LONGEST_REFUSAL)
        finally:
            account.held_back, self.held_back = account.held_back - 1, self.held_back - 1

    def _account(self, principal: str) -> _Account:
        account = self._accounts.get(principal)
        if account is None:
            self._make_room()
            account = self._accounts[principal] = _Account(
                self._paces(),
                Budget(_MESSAGES_PER_SECOND, _MESSAGES_PER_SECOND, self._now),
                Budget(_TOLD_PER_SECOND, _TOLD_AT_ONCE, self._now),
                Budget(_REFUSED_PER_SECOND, _REFUSED_AT_ONCE, self._now),
            )
        self._accounts.move_to_end(principal)
        return account

    def _paces(self) -> dict[Lane, _Pace]:
        rate, burst = self._settings.calls_per_second, self._settings.calls_burst
        if not rate:
            return {}
        usual = _Pace("calls_per_second", rate, burst, self._now)
        urgent = _Pace("urgent_calls_per_second", rate, burst, self._now)
        return {Lane.STREAMS: usual, Lane.CALLS: usual, Lane.URGENT: urgent}

    def _make_room(self) -> None:
        """Forget who has not called for longest; not who has calls under way, whose number the lanes bound."""
        while len(self._accounts) >= _MAX_ACCOUNTS:
            oldest = next((name for name, each in self._accounts.items() if not each.under_way.total()), None)
            if oldest is None:
                return
            del self._accounts[oldest]

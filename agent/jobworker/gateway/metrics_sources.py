"""Whose statistics the metrics are made of."""

from __future__ import annotations

from dataclasses import dataclass

from jobworker.gateway.calls import Calls
from jobworker.gateway.follow import Feeds
from jobworker.gateway.lag import Lag
from jobworker.gateway.link import SupervisorLink
from jobworker.gateway.mirror import Mirror
from jobworker.gateway.policies import Policies
from jobworker.gateway.quotas import Quotas
from jobworker.gateway.trust import Trust


@dataclass(frozen=True, slots=True)
class Sources:
    """All of them; none knows of metrics."""

    link: SupervisorLink
    mirror: Mirror
    feeds: Feeds
    calls: Calls
    quotas: Quotas
    trust: Trust
    policies: Policies
    lag: Lag

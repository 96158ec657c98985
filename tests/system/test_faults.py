"""A short campaign of random kills; `make faults` runs longer ones."""

from __future__ import annotations

import pytest

from support.agent import running_agent
from system.faults.campaign import Campaign


@pytest.mark.timeout(600)
def test_random_kills_lose_nothing() -> None:
    with running_agent() as agent:
        report = Campaign(agent, kills=30, workers=6, standing=6, seed=1).run()
    assert report.losses == []
    assert report.kills.total() == 30
    assert report.jobs.total() > report.jobs["standing"] == 6

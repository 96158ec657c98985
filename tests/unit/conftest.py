"""An agent that answers as a test tells it, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobworker.client import connect
from jobworker.client.rpc.client import Client
from support import scripted


@pytest.fixture
def agent() -> Iterator[scripted.ScriptedAgent]:
    with scripted.scripted_agent() as running:
        yield running


@pytest.fixture
def client(agent: scripted.ScriptedAgent) -> Iterator[Client]:
    with connect(agent.endpoint()) as connected:
        yield connected

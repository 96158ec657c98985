"""What several of these tests stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import gateway
from support.scripted_supervisor import ScriptedSupervisor, record


@pytest.fixture
def served(tmp_path: Path) -> Iterator[gateway.Gateway]:
    """A gateway, whose supervisor knows one job and does as it is told."""
    supervisor = ScriptedSupervisor(str(tmp_path))
    supervisor.records = [record(1)]
    try:
        with gateway.gateway(tmp_path) as started:
            assert supervisor.connected.wait(gateway.DEADLINE)
            yield started
    finally:
        supervisor.close()

"""The firewall option: put in place by playbook, in force in each host's kernel, and taken away again."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from support.fleet import PORT, Fleet, wait_for

pytestmark = pytest.mark.timeout(3600)

UNIT = "jobworker-firewall.service"
MOST = 5


@pytest.fixture
def restored(fleet: Fleet) -> Iterator[None]:
    """Other tests connect as often as they like."""
    yield
    play = fleet.play("agents")
    assert play.status == 0, play.tail()
    for member in fleet:
        root = member.guest.root
        assert root.run("nft list table inet jobworker").rc != 0
        assert not root.file(f"/etc/systemd/system/{UNIT}").exists


@pytest.mark.usefixtures("restored")
def test_connections_of_one_address_are_bounded_while_it_is_wanted(fleet: Fleet) -> None:
    wanted: dict[str, Any] = {"agent_firewall": True, "agent_firewall_connections": MOST}
    look = fleet.play("agents", "--check", **wanted)
    assert (look.status, look.changed > 0) == (0, True), look.tail()
    for member in fleet:
        assert not member.guest.root.file(f"/etc/systemd/system/{UNIT}").exists
    play = fleet.play("agents", **wanted)
    assert play.status == 0, play.tail()
    for member in fleet:
        member.guest.root.check_output("nft list table inet jobworker")
        with contextlib.ExitStack() as connections:
            for _ in range(MOST):
                connections.enter_context(socket.create_connection((member.host, PORT), timeout=60))
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((member.host, PORT), timeout=60)
        wait_for(member.answers)
    again = fleet.play("agents", **wanted)
    assert (again.status, again.changed) == (0, 0), again.tail()

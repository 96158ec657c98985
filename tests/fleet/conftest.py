"""Tests of all hosts of the lab as one fleet, with cgroup v1 and v2 in it."""

from __future__ import annotations

import os

import pytest

from support.fleet import Fleet, Member
from support.guest import lab, machine_names


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """The machines, with agents that playbooks have installed: from nothing, unless a run before this one has."""
    fleet = Fleet(lab(), os.environ["JOBWORKER_VM_SSH"], os.environ["JOBWORKER_VM_RESULTS"])
    fleet.install_collection()
    if not all(member.guest.root.file("/opt/jobworker/current").exists for member in fleet):
        look = fleet.play("site", "--check", "--diff")
        assert look.status == 0, look.tail()
    play = fleet.play("site", "--diff")
    assert play.status == 0, play.tail()
    return fleet


@pytest.fixture(params=machine_names() or ["no machine"])
def member(fleet: Fleet, request: pytest.FixtureRequest) -> Member:
    """Each host in turn."""
    return fleet.members[request.param]

"""Tests of all hosts of the lab as one fleet, with cgroup v1 and v2 in it."""

from __future__ import annotations

import os

import pytest

from support.fleet import Fleet, Member
from support.guest import lab, machine_names


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """The machines, with agents that a playbook has installed from nothing."""
    fleet = Fleet(lab(), os.environ["JOBWORKER_VM_SSH"], os.environ["JOBWORKER_VM_RESULTS"])
    fleet.install_collection()
    for options in (["--check", "--diff"], ["--diff"]):
        play = fleet.play("site", *options)
        assert play.status == 0, play.tail()
    return fleet


@pytest.fixture(params=machine_names() or ["no machine"])
def member(fleet: Fleet, request: pytest.FixtureRequest) -> Member:
    """Each host in turn."""
    return fleet.members[request.param]

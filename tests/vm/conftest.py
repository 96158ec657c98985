"""Tests of the whole in virtual machines; `make vms-test` says by the environment which one this run is for."""

from __future__ import annotations

import os

import pytest

from support.fleet import Fleet
from support.guest import RESULTS, Guest


@pytest.fixture(scope="session")
def machine() -> Guest:
    """The machine; its cgroups have been looked at before anything else."""
    if "JOBWORKER_VM" not in os.environ:
        pytest.skip("runs for a virtual machine: make vms-up vms-test")
    machine = Guest(os.environ["JOBWORKER_VM"], os.environ["JOBWORKER_VM_SSH"], os.environ["JOBWORKER_VM_WHEELS"])
    machine.assert_mode()
    return machine


@pytest.fixture(scope="session")
def guest(machine: Guest) -> Guest:
    """The machine, with the working tree deployed."""
    machine.deploy()
    return machine


@pytest.fixture(scope="session")
def fleet(machine: Guest) -> Fleet:
    """The machine, with an agent that a playbook has installed from nothing."""
    fleet = Fleet(machine, os.environ["JOBWORKER_VM_SSH"], os.path.join(RESULTS, f"{machine.name}-fleet"))
    fleet.install_collection()
    play = fleet.play("site", "--diff")
    assert play.status == 0, play.tail()
    return fleet

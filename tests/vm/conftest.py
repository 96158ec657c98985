"""Tests of the whole in virtual machines; `make vms-test` says by the environment which one this run is for."""

from __future__ import annotations

import os

import pytest

from support.guest import Guest


@pytest.fixture(scope="session")
def guest() -> Guest:
    """The machine, with the working tree deployed; its cgroups have been looked at before anything else."""
    if "JOBWORKER_VM" not in os.environ:
        pytest.skip("runs for a virtual machine: make vms-up vms-test")
    machine = Guest(os.environ["JOBWORKER_VM"], os.environ["JOBWORKER_VM_SSH"], os.environ["JOBWORKER_VM_WHEELS"])
    machine.assert_mode()
    machine.deploy()
    return machine

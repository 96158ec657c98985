"""Tests in and around one host of the lab; `vagrant/vms test` says which by the environment."""

from __future__ import annotations

import pytest

from support.guest import Guest, lab


@pytest.fixture(scope="session")
def machine() -> Guest:
    """The machine; its cgroups have been looked at before anything else."""
    (machine,) = lab()
    return machine


@pytest.fixture(scope="session")
def guest(machine: Guest) -> Guest:
    """The machine, with the working tree deployed."""
    machine.deploy()
    return machine

"""The gateway under a service manager: when it serves, that it lives, and that it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from support.gateway import Gateway, gateway
from support.service_manager import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(str(tmp_path / "notify"))
    yield manager
    manager.close()


def run(tmp_path: Path, manager: ServiceManager, **environment: str) -> AbstractContextManager[Gateway]:
    return gateway(tmp_path, None, NOTIFY_SOCKET=manager.address, **environment)


def test_it_tells_that_it_lives_until_it_is_stopped(tmp_path: Path, manager: ServiceManager) -> None:
    with run(tmp_path, manager, WATCHDOG_USEC="100000") as running:
        manager.wait_for(lambda manager: manager.said.count("WATCHDOG=1") >= 3)
        assert manager.said[0] == "READY=1"
        running.process.send_signal(signal.SIGSTOP)
        # What it had said before it stopped is there by the time that the kernel says it has.
        os.waitid(os.P_PID, running.process.pid, os.WSTOPPED)
        said = len(manager.said)
        running.process.send_signal(signal.SIGCONT)
        manager.wait_for(lambda manager: len(manager.said) > said)
    manager.wait_for(lambda manager: "STOPPING=1" in manager.said)


def test_no_watchdog_no_signs(tmp_path: Path, manager: ServiceManager) -> None:
    with run(tmp_path, manager):
        pass
    manager.wait_for(lambda manager: "STOPPING=1" in manager.said)
    assert manager.said == ["READY=1", "STOPPING=1"]

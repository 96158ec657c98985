"""The gateway under a service manager: when it serves, that it lives, and that it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.gateway import DEADLINE, Gateway, settings
from support.service_manager import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(str(tmp_path / "notify"))
    yield manager
    manager.close()


def run(tmp_path: Path, manager: ServiceManager, **environment: str) -> Gateway:
    return Gateway(str(tmp_path), settings(str(tmp_path)), NOTIFY_SOCKET=manager.address, **environment)


def end(gateway: Gateway) -> None:
    gateway.process.terminate()
    assert gateway.process.wait(DEADLINE) == 0


def test_it_tells_that_it_lives_until_it_is_stopped(tmp_path: Path, manager: ServiceManager) -> None:
    gateway = run(tmp_path, manager, WATCHDOG_USEC="100000")
    manager.wait_for(lambda manager: manager.said.count("WATCHDOG=1") >= 3)
    assert manager.said[0] == "READY=1"
    gateway.process.send_signal(signal.SIGSTOP)
    # What it had said before it stopped is there by the time that the kernel says it has.
    os.waitid(os.P_PID, gateway.process.pid, os.WSTOPPED)
    said = len(manager.said)
    gateway.process.send_signal(signal.SIGCONT)
    manager.wait_for(lambda manager: len(manager.said) > said)
    end(gateway)
    manager.wait_for(lambda manager: "STOPPING=1" in manager.said)


def test_no_watchdog_no_signs(tmp_path: Path, manager: ServiceManager) -> None:
    end(run(tmp_path, manager))
    manager.wait_for(lambda manager: "STOPPING=1" in manager.said)
    assert manager.said == ["READY=1", "STOPPING=1"]

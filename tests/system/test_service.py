"""`worker-agent keeper`, `gateway` and `upgrade`, as units call them, under a service manager."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker.jobs import EndReason
from jobworker.settings import schema
from support.link import DEADLINE, Link
from support.root_side import own_uids
from support.service_manager import ServiceManager

pytestmark = pytest.mark.root

CONFIG = """
state_dir: {directory}/state
listen: 127.0.0.1:0
tls: {{ca: /nowhere/ca.pem, cert: /nowhere/server.pem, key: /nowhere/server.key}}
jobs: {{first_uid: {first_uid}, default_pids: {pids}}}
"""


def command(*words: str) -> list[str]:
    return [sys.executable, "-I", "-m", "jobworker.cli.worker_agent", *words]


class Service:
    """A keeper that a service manager has started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config, self.settings = directory / "agent.yaml", directory / "settings.json"
        self._uids = own_uids()
        self._links: list[Link] = []
        self.write(pids=100)
        self.manager = ServiceManager(str(directory / "notify"))
        self.keeper = self.start()

    def write(self, pids: int | str) -> None:
        self.config.write_text(CONFIG.format(directory=self.directory, first_uid=self._uids, pids=pids))

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        told = len(self.manager.said)
        words = ["keeper", "--config", str(self.config), "--settings", str(self.settings), *options]
        call = self.manager.command(command(*words))
        keeper = subprocess.Popen(call, pass_fds=list(self.manager.stored.values()))
        self.manager.wait_for(lambda manager: "READY=1" in manager.said[told:])
        return keeper

    def end(self, signum: int) -> int:
        self.keeper.send_signal(signum)
        return self.keeper.wait(DEADLINE)

    def upgrade(self) -> subprocess.CompletedProcess[str]:
        words = command("upgrade", "--config", str(self.config), "--settings", str(self.settings))
        return subprocess.run(words, capture_output=True, text=True, check=False)

    def link(self) -> Link:
        self._links.append(Link(schema.read(str(self.settings)).socket_path, subscribe=True))
        return self._links[-1]

    def close(self) -> None:
        for link in self._links:
            link.close()
        if self.keeper.poll() is None:
            self.end(signal.SIGTERM)
        self.manager.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    service.close()


def test_the_process_that_was_started_becomes_the_keeper(service: Service) -> None:
    arguments = Path(f"/proc/{service.keeper.pid}/cmdline").read_bytes().split(b"\0")
    assert arguments[1:6] == [b"-I", b"-S", b"-E", b"-X", b"utf8"]
    assert arguments[6].endswith(b"/keeper/__main__.py")
    maps = Path(f"/proc/{service.keeper.pid}/maps").read_text()
    assert "yaml" not in maps
    assert schema.read(str(service.settings)).jobs.default_pids == 100


def test_settings_are_taken_anew_while_jobs_run(service: Service) -> None:
    link = service.link()
    before = link.start("/bin/sleep", "1000")
    service.write(pids=200)
    done = service.upgrade()
    assert (done.returncode, done.stderr) == (0, "")
    link = service.link()
    after = link.start("/bin/sleep", "1000")
    for job, pids in ((link.inspect(before.job_id), "100"), (after, "200")):
        assert {limit.name: limit.value for limit in job.limits}["pids"] == pids
    for job in (before, after):
        assert link.stop(job.job_id).end_reason is EndReason.STOPPED


def test_the_gateway_s_user_stays_who_it_is(service: Service) -> None:
    assert service.end(signal.SIGTERM) == 0
    service.keeper = service.start("--gateway-user", "nobody")
    was = schema.read(str(service.settings)).gateway_uid
    assert was
    assert service.upgrade().returncode == 0
    settings = schema.read(str(service.settings))
    assert (settings.gateway_uid, os.stat(settings.socket_path).st_uid) == (was, was)


def test_a_wrong_file_changes_nothing(service: Service) -> None:
    was = service.settings.read_bytes()
    service.write(pids="many")
    refused = service.upgrade()
    assert refused.returncode == 2
    assert "jobs.default_pids" in refused.stderr
    assert service.settings.read_bytes() == was
    assert service.link().welcome


def test_without_an_agent_nothing_changes(service: Service) -> None:
    assert service.end(signal.SIGTERM) == 0
    was = service.settings.read_bytes()
    service.write(pids=200)
    refused = service.upgrade()
    assert (refused.returncode, "no agent can be reached there" in refused.stderr) == (1, True)
    assert service.settings.read_bytes() == was


def test_a_stop_ends_jobs_and_a_restart_does_not(service: Service) -> None:
    job = service.link().start("/bin/sleep", "1000")
    service.manager.wait_for(lambda manager: len(manager.stored) == 3)
    assert service.end(signal.SIGUSR1) == 0
    service.keeper = service.start()
    assert service.link().inspect(job.job_id).pid == job.pid
    assert service.end(signal.SIGTERM) == 0
    service.manager.wait_for(lambda manager: not manager.stored)
    service.keeper = service.start()
    assert service.link().inspect(job.job_id).end_reason is not EndReason.LOST


def test_the_gateway_refuses_root(service: Service) -> None:
    refused = subprocess.run(
        command("gateway", "--config", str(service.config)), capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "does not run as root" in refused.stderr


def test_an_unknown_user_is_named(service: Service) -> None:
    words = ["keeper", "--config", str(service.config), "--settings", str(service.settings)]
    refused = subprocess.run(
        command(*words, "--gateway-user", "nobody-of-this-name"), capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "gateway-user" in refused.stderr

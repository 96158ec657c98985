"""The Debian package: installed, upgraded under a running job, and purged."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.guest import ROOT, Guest
from support.versions import WHEELHOUSE, make_version

pytestmark = pytest.mark.timeout(3600)

UNITS = "jobworker-keeper jobworker-gateway"
TLS = "/etc/jobworker/tls"
CONFIG = f"""
state_dir: /var/lib/jobworker
listen: 127.0.0.1:7443
tls: {{ca: {TLS}/ca.pem, cert: {TLS}/server.pem, key: {TLS}/server.key}}
"""
CALL = f"worker-client --addr 127.0.0.1:7443 --ca {TLS}/ca.pem --cert {TLS}/writer.pem --key {TLS}/writer.key"


class Package:
    """The package in one machine, and the agent that it makes there."""

    def __init__(self, guest: Guest, directory: Path) -> None:
        self.guest, self._directory = guest, directory

    def build(self, version: str, wheelhouse: str) -> str:
        """Make the package of a version, and bring it into the machine; its path there."""
        archive = f"{wheelhouse}/jobworker-{version}-py{self.guest.kind.python}-x86_64.tar"
        script = os.path.join(ROOT, "requirements", "deb.sh")
        # To compress it as it is for users takes a minute.
        quick = os.environ | {"DPKG_DEB_COMPRESSOR_TYPE": "gzip", "DPKG_DEB_COMPRESSOR_LEVEL": "1"}
        made = subprocess.run(
            [script, archive, str(self._directory)], check=True, capture_output=True, text=True, env=quick
        ).stdout.strip()
        self.guest.copy("/var/tmp", str(self._directory), [os.path.basename(made)])  # noqa: S108 - in the machine
        return f"/var/tmp/{os.path.basename(made)}"  # noqa: S108

    def run(self, command: str) -> str:
        output: str = self.guest.root.check_output(command)
        return output

    def install(self, path: str) -> None:
        self.run(f"dpkg --install {path}")

    def asked(self, words: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run(f"{CALL} {words} --format json"))
        return answer


@pytest.fixture(scope="module")
def package(machine: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    package = Package(machine, tmp_path_factory.mktemp("deb"))
    package.install(package.build("0.1.0", WHEELHOUSE))
    yield package
    package.run("dpkg --purge jobworker; rm /var/tmp/jobworker_*.deb")


@pytest.fixture(scope="module")
def serving(package: Package) -> Package:
    package.run(f"cat > /etc/jobworker/agent.yaml <<'END'{CONFIG}END")
    package.run("worker-agent config check /etc/jobworker/agent.yaml")
    package.run(f"worker-pki dev {TLS}")
    package.run(f"chgrp jobworker {TLS}/server.key && chmod 640 {TLS}/server.key")
    package.run(f"systemctl enable --now {UNITS}")
    return package


def test_it_does_not_run_before_it_is_set_up(package: Package) -> None:
    assert package.guest.root.run(f"systemctl is-active {UNITS}").stdout.split() == ["inactive", "inactive"]
    assert package.run("worker-client version").strip().endswith("0.1.0")


def test_its_files_are_what_it_says(package: Package) -> None:
    assert package.run("dpkg --verify jobworker") == ""
    files = package.run("dpkg --listfiles jobworker").splitlines()
    assert "/usr/share/man/man1/worker-client-run.1.gz" in files
    assert "/usr/share/doc/jobworker/jobworker-0.1.0.cdx.json" in files


def test_the_agent_runs_a_job(serving: Package) -> None:
    assert serving.run(f"{CALL} run -- echo fine") == "fine"


def test_the_root_side_is_exposed_as_little_as_by_playbook(serving: Package) -> None:
    serving.run("systemd-analyze security --no-pager --threshold=44 jobworker-keeper.service")


def test_another_version_takes_over_and_back_again(serving: Package, tmp_path: Path) -> None:
    newer = serving.build("0.1.1", make_version("0.1.1", serving.guest.kind.python, tmp_path))
    job_id = serving.run(f"{CALL} start -- sh -c 'i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done'").strip()
    pid = serving.asked(f"query {job_id}")["pid"]
    serving.install(newer)
    assert serving.asked("info")["version"] == "0.1.1"
    serving.install(newer.replace("0.1.1", "0.1.0"))
    assert serving.asked("info")["version"] == "0.1.0"
    job = serving.asked(f"query {job_id}")
    assert (job["state"], job["pid"]) == ("RUNNING", pid)
    serving.run(f"{CALL} stop {job_id} --force")
    lines = serving.run(f"{CALL} stream {job_id}").split()
    assert lines == [str(number) for number in range(len(lines))]
    assert serving.run("ls /opt/jobworker").split() == ["0.1.0", "current"]


def test_a_package_for_another_python_takes_nothing_away(serving: Package) -> None:
    other = "s/^Pre-Depends: .*/Pre-Depends: python3 (>= 3.99)/; s/^Version: .*/Version: 9.9.9/"
    serving.run(
        f"cd /var/tmp && dpkg-deb -R jobworker_0.1.0*.deb other && sed -i '{other}' other/DEBIAN/control"
        " && dpkg-deb -Znone -b other jobworker_other.deb && rm -r other"
    )
    refused = serving.guest.root.run("dpkg --install /var/tmp/jobworker_other.deb")
    assert (refused.rc != 0, "python3 (>= 3.99)" in refused.stderr) == (True, True), refused.stderr
    assert serving.run("dpkg --verify jobworker") == ""
    serving.run("systemctl restart jobworker-gateway")
    assert serving.run(f"{CALL} run -- echo fine") == "fine"


def test_a_gateway_that_somebody_has_stopped_stays_so(serving: Package) -> None:
    serving.run("systemctl stop jobworker-gateway")
    serving.run("cd /var/tmp && dpkg --install jobworker_0.1.0*.deb")
    assert serving.guest.root.run("systemctl is-active jobworker-gateway").stdout.strip() == "inactive"
    serving.run("systemctl start jobworker-gateway")


def test_a_purge_leaves_nothing(serving: Package) -> None:
    job_id = serving.run(f"{CALL} start -- sleep 1000").strip()
    pid = serving.asked(f"query {job_id}")["pid"]
    serving.run("dpkg --purge jobworker")
    assert not serving.guest.root.file(f"/proc/{pid}").exists
    kept = r"\( -path /proc -o -path /opt/jobworker-tests -o -path /var/log -o -path '/var/tmp/*.deb' \) -prune"
    assert serving.run(f"find / -xdev {kept} -o -name '*jobworker*' -print") == ""

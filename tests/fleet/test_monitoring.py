"""A Prometheus that has been told of the fleet by playbook."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.fleet import Fleet, wait_for

pytestmark = pytest.mark.timeout(3600)
ADDRESS = "127.0.0.1:9090"


def ask(query: str) -> list[Any]:
    """What Prometheus finds for an expression; nothing while it does not serve."""
    url = f"http://{ADDRESS}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            found: list[Any] = json.load(answer)["data"]["result"]
    except OSError:
        return []
    return found


@pytest.fixture(scope="module")
def prometheus(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs Debian's package prometheus")
    assert fleet.play("site", "--limit=jobworker_monitoring").status == 0
    fleet.issue("prometheus", role="READER")
    ca, cert, key = fleet.files("prometheus")
    directory: Path = tmp_path_factory.mktemp("prometheus")
    scraped = {
        "job_name": "jobworker",
        "scheme": "https",
        "scrape_interval": "5s",
        "tls_config": {"ca_file": ca, "cert_file": cert, "key_file": key},
        "file_sd_configs": [{"files": [f"{fleet.prometheus}/targets/*.json"]}],
    }
    config = {"scrape_configs": [scraped], "rule_files": [f"{fleet.prometheus}/rules/*.yml"]}
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [program, f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    with (
        open(directory / "log", "wb") as log,
        subprocess.Popen([*command, f"--web.listen-address={ADDRESS}"], stdout=log, stderr=log) as running,
    ):
        yield
        running.terminate()
    assert running.returncode == 0, (directory / "log").read_text()


@pytest.mark.usefixtures("prometheus")
def test_every_host_is_scraped_and_told_apart(fleet: Fleet) -> None:
    wait_for(lambda: len(ask("up == 1")) == len(fleet.members))
    assert {found["metric"]["host"] for found in ask("up")} == set(fleet.members)
    modes = {found["metric"]["host"]: found["metric"]["cgroup_mode"] for found in ask("jobworker_host_info")}
    assert modes == {member.name: member.guest.kind.mode for member in fleet}


@pytest.mark.usefixtures("prometheus")
def test_its_alerts_are_loaded(fleet: Fleet) -> None:
    wait_for(lambda: ask("up") != [])
    with urllib.request.urlopen(f"http://{ADDRESS}/api/v1/rules", timeout=30) as answer:
        groups = json.load(answer)["data"]["groups"]
    loaded = {rule["name"] for group in groups for rule in group["rules"]}
    with open(os.path.join(fleet.prometheus, "rules", "jobworker.rules.yml")) as file:
        told = {
            rule.get("alert") or rule["record"]
            for group in yaml.safe_load(file)["groups"]
            for rule in group["rules"]
        }
    assert loaded == told

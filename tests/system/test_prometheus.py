"""Prometheus itself, as Debian has it, scrapes an agent, and evaluates what it is given for that."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from support import monitoring
from support.agent import DEADLINE, running_agent
from support.ports import own_address
from support.scraping import Scraper
from support.waiting import until

pytestmark = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="prometheus (Debian's package of that name) is not installed"
)


class Prometheus:
    """A running Prometheus that scrapes an agent every other second, with a client certificate or without."""

    def __init__(self, directory: str, scraper: Scraper, role: str) -> None:
        pki, target = scraper.agent.pki_dir, "{}:{}".format(*scraper.address)
        files = {"ca": "ca.pem"} | ({"cert": f"{role}.pem", "key": f"{role}.key"} if role else {})
        tls = {f"{kind}_file": os.path.join(pki, name) for kind, name in files.items()}
        job = {
            "job_name": "jobworker",
            "scheme": "https",
            "tls_config": tls,
            "static_configs": [{"targets": [target], "labels": {"host": "here"}}],
        }
        every = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
        config = os.path.join(directory, "prometheus.yml")
        with open(config, "w") as file:
            yaml.safe_dump({"global": every, "rule_files": [str(monitoring.RULES)], "scrape_configs": [job]}, file)
        self.address = own_address()
        self._log_path = os.path.join(directory, "prometheus.log")
        options = (f"--storage.tsdb.path={directory}/data", "--storage.tsdb.retention.time=1h")
        with open(self._log_path, "wb") as log:
            self._process = subprocess.Popen(
                ["prometheus", f"--config.file={config}", f"--web.listen-address={self.address}", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def ask(self, path: str, **parameters: str) -> Any:
        """What its API answers; None while nobody does."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
                return json.load(answer)["data"]
        except OSError:
            assert self._process.poll() is None, self.log()
            return None

    def target(self) -> dict[str, Any]:
        """What it knows of the one target, once it has scraped it."""
        found: list[dict[str, Any]] = []

        def scraped() -> bool:
            found[:] = (self.ask("targets") or {}).get("activeTargets", [])
            return bool(found) and found[0]["health"] != "unknown"

        until(scraped, True, DEADLINE)
        return found[0]

    def values(self, query: str) -> list[float]:
        answer = self.ask("query", query=query)
        assert answer is not None, query
        return [float(each["value"][1]) for each in answer["result"]]

    def log(self) -> str:
        with open(self._log_path) as file:
            return file.read()

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def scraper() -> Iterator[Scraper]:
    with running_agent("metrics: {listen: '127.0.0.1:0', job_series: 5}\n") as agent:
        yield Scraper(agent)


@pytest.fixture
def prometheus(
    scraper: Scraper, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Prometheus]:
    running = Prometheus(str(tmp_path_factory.mktemp("prometheus")), scraper, request.param)
    try:
        yield running
    finally:
        running.close()


@pytest.mark.parametrize("prometheus", ["reader"], indirect=True)
def test_it_scrapes_with_a_client_certificate(scraper: Scraper, prometheus: Prometheus) -> None:
    scraper.agent.cli("run", "--", "true", check=True)
    scraper.agent.cli("start", "true", role="reader")
    job = scraper.agent.start_job("sleep", "1000")
    target = prometheus.target()
    assert (target["health"], target["lastError"]) == ("up", "")
    # What a scrape has brought can be asked for a moment after its target is known.
    until(lambda: prometheus.values('max_over_time(up{job="jobworker"}[10m])'), [1.0], DEADLINE)
    until(lambda: prometheus.values('jobworker_jobs{state="running"}'), [1.0], DEADLINE)
    # Each expression is one that it understands; and what the dashboard shows, there is.
    for expression in monitoring.expressions():
        assert prometheus.ask("query", query=expression) is not None, expression
    for expression in monitoring.shown():
        for name, _ in monitoring.series(expression):
            if "quota" not in name:
                assert prometheus.values(f"count({name})"), name
    until(lambda: prometheus.values("host_reason:jobworker_jobs_ended:rate5m") != [], True, DEADLINE)
    firing = {each["metric"]["alertname"] for each in prometheus.ask("query", query="ALERTS")["result"]}
    # The certificates for development end within days.
    assert firing <= {"JobworkerCertificateExpires"}
    scraper.agent.cli("stop", "--force", job, check=True)


@pytest.mark.parametrize("prometheus", [""], indirect=True)
def test_without_a_certificate_it_gets_nothing(prometheus: Prometheus) -> None:
    target = prometheus.target()
    assert target["health"] == "down"
    assert prometheus.values("count(jobworker_build_info)") == []

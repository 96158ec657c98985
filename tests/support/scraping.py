"""Scrapes an agent as Prometheus does."""

from __future__ import annotations

import http.client
import json
import os
import ssl

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from support.agent import DEADLINE, Agent


class Scraper:
    """Scrapes the gateway that the agent has now."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        serving = [line for line in agent.log().splitlines() if '"serving"' in line][-1]
        host, _, port = json.loads(serving)["metrics"].rpartition(":")
        self.address = (host, int(port))

    def context(self, role: str = "") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=os.path.join(self.agent.pki_dir, "ca.pem"))
        if role:
            pair = (os.path.join(self.agent.pki_dir, f"{role}.{kind}") for kind in ("pem", "key"))
            context.load_cert_chain(*pair)
        return context

    def ask(self, method: str = "GET", path: str = "/metrics", role: str = "reader") -> tuple[int, str]:
        connection = http.client.HTTPSConnection(*self.address, timeout=DEADLINE, context=self.context(role))
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def families(self) -> list[Metric]:
        """All that is told now."""
        status, text = self.ask()
        assert status == 200
        return list(text_string_to_metric_families(text))

    def samples(self) -> list[Sample]:
        return [sample for family in self.families() for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Of one series, or of several together; 0 where there is none yet."""
        return sum(s.value for s in self.samples() if s.name == name and s.labels.items() >= labels.items())

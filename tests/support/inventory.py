"""An inventory of agents, and worker-client called on its hosts."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support import certs, scripted


class Hosts:
    """Hosts by their names, all in the group `web`, with the writer's certificate of the development PKI."""

    def __init__(self, directory: Path, addresses: Mapping[str, str]) -> None:
        self.path = directory / "hosts.json"
        hostvars = {name: {"agent_address": address} for name, address in addresses.items()}
        self.write({"_meta": {"hostvars": hostvars}, "web": {"hosts": list(addresses)}})

    def write(self, inventory: Mapping[str, Any]) -> None:
        self.path.write_text(json.dumps(inventory))

    def command(self, *args: str) -> list[str | bytes]:
        files = certs.dev_pki().files("writer")
        connection = ("--ca", files.ca, "--cert", files.cert, "--key", files.key, "--inventory", str(self.path))
        return [scripted.program(), *connection, *args]

    def cli(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run worker-client to its end."""
        command = self.command(*args)
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def told(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """How it went on each host, of a call with `--format json`."""
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return {event["host"]: event for event in events if event["type"] == "result"}


def without_ansible() -> dict[str, str]:
    """An environment in which no ansible-inventory is found."""
    return {**os.environ, "PATH": "/nonexistent"}

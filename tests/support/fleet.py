"""A controller: playbooks of the collection, and the client, against one machine of the lab."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

import yaml

from support.guest import ROOT, Guest

PASSPHRASE = "correct horse battery"
_BIN, _FLEET = os.path.join(ROOT, ".venv", "bin"), os.path.join(ROOT, ".venv-fleet", "bin")
_PORT = 7443


class Play:
    """What came of a playbook.

    Attributes:
        changed: how many tasks changed something.
    """

    def __init__(self, status: int, output: str) -> None:
        self.status, self.output = status, output
        self.changed = sum(int(number) for number in re.findall(r"changed=(\d+)", output))

    def tail(self) -> str:
        return self.output[-4000:]


class Fleet:
    """Everything is in `directory`: the inventory, the PKI, what playbooks have said."""

    def __init__(self, guest: Guest, ssh_config: str, directory: str) -> None:
        self.guest, self.directory = guest, directory
        self.said = ""
        self.address = f"{guest.address}:{_PORT}"
        os.makedirs(directory, exist_ok=True)
        host = {"agent_address": self.address, "pki_names": [guest.name, guest.address]}
        variables = {
            "ansible_ssh_common_args": f"-F {ssh_config}",
            "ansible_python_interpreter": "/usr/bin/python3",
            "agent_wheelhouse": os.path.join(ROOT, "dist", "wheelhouse"),
            "agent_settings": {"log_level": "debug"},
            # Software emulation is ten times slower.
            "agent_gate_retries": 90,
            "pki_trust_domain": "fleet.test",
            "pki_passphrase": PASSPHRASE,
        }
        inventory = {"jobworker": {"hosts": {guest.name: host}, "vars": variables}}
        self._inventory = os.path.join(directory, "inventory.yml")
        with open(self._inventory, "w") as file:
            yaml.safe_dump(inventory, file)

    def play(self, name: str, *options: str, **variables: Any) -> Play:
        """Run a playbook of the collection."""
        command = [f"{_FLEET}/ansible-playbook", "-i", self._inventory, f"jobworker.jobworker.{name}", *options]
        command += ["--extra-vars", json.dumps(variables)]
        environment = os.environ | {
            # As a shell has it, from which the roles take where the PKI is.
            "PWD": self.directory,
            "PATH": f"{_FLEET}:{_BIN}:{os.environ['PATH']}",
            "ANSIBLE_COLLECTIONS_PATH": os.path.join(self.directory, "collections"),
            "ANSIBLE_PIPELINING": "1",
            # A slow machine answers late.
            "ANSIBLE_TIMEOUT": "120",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "0",
        }
        done = subprocess.run(
            command, cwd=self.directory, env=environment, capture_output=True, text=True, check=False
        )
        play = Play(done.returncode, done.stdout + done.stderr)
        self.said += play.output
        with open(os.path.join(self.directory, "plays.log"), "a") as log:
            log.write(f"\n===== {name} {' '.join(options)}\n{play.output}")
        return play

    def install_collection(self) -> None:
        """Build the collection, and install what was built."""
        galaxy = f"{_FLEET}/ansible-galaxy"
        built = os.path.join(self.directory, "built")
        build = [galaxy, "collection", "build", "--force", "--output-path", built, os.path.join(ROOT, "ansible")]
        subprocess.run(build, check=True, capture_output=True)
        archives = [os.path.join(built, name) for name in os.listdir(built)]
        target = os.path.join(self.directory, "collections")
        install = [galaxy, "collection", "install", "--offline", "--force", "-p", target, *archives]
        subprocess.run(install, check=True, capture_output=True)

    def issue(self, user: str) -> None:
        """Make a certificate for another user."""
        command = [f"{_BIN}/worker-pki", "issue", "user", user, "--role=WRITER", "--dir=pki"]
        command += ["--passphrase-file=/dev/stdin"]
        subprocess.run(command, input=PASSPHRASE.encode(), cwd=self.directory, check=True, capture_output=True)

    def client(self, *words: str, user: str = "ansible") -> subprocess.CompletedProcess[str]:
        """Call the agent from outside."""
        pki = os.path.join(self.directory, "pki")
        pair = os.path.join(pki, "users", user)
        command = [f"{_BIN}/worker-client", f"--addr={self.address}", f"--ca={pki}/ca.pem"]
        command += [f"--cert={pair}.pem", f"--key={pair}.key", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    def cli(self, *words: str) -> str:
        """The output of a call that has to succeed."""
        done = self.client(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def asked(self, *words: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.cli(*words, "--format", "json"))
        return answer

"""A controller: playbooks of the collection, and the client, against machines of the lab as one fleet."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import yaml

from jobworker.client import Endpoint, connect
from jobworker.client.rpc.client import Client
from support.guest import ROOT, Guest

PASSPHRASE = "correct horse battery"
KEEPER, GATEWAY, JOBS = "jobworker-keeper.service", "jobworker-gateway.service", "jobworker-jobs.service"
PORT, METRICS_PORT = 7443, 7444
_BIN, _FLEET = os.path.join(ROOT, ".venv", "bin"), os.path.join(ROOT, ".venv-fleet", "bin")


def rest_of(follower: subprocess.Popen[str]) -> tuple[str, str]:
    """What a follower writes until it ends, to standard output and standard error.

    `communicate` would pass by what a `readline` has read ahead.
    """
    assert follower.stdout
    assert follower.stderr
    with follower:
        return follower.stdout.read(), follower.stderr.read()


def wait_for(state: Callable[[], bool], seconds: float = 240) -> None:
    """Wait for a state of a machine, of which nothing tells out here."""
    deadline = time.monotonic() + seconds
    while not state():
        assert time.monotonic() < deadline, "the machine does not come to be as it should"
        time.sleep(1)


class Play:
    """What came of a playbook.

    Attributes:
        changed: how many tasks changed something, on all hosts.
    """

    def __init__(self, status: int, output: str) -> None:
        self.status, self.output = status, output
        self.changed = sum(int(number) for number in re.findall(r"changed=(\d+)", output))

    def tail(self) -> str:
        return self.output[-6000:]


class Member:
    """One host of the fleet, and its agent as an operator's client reaches it."""

    def __init__(self, fleet: Fleet, guest: Guest) -> None:
        self.guest, self._fleet = guest, fleet
        self.name, self.host = guest.name, guest.address

    @property
    def addr(self) -> str:
        return f"{self.host}:{PORT}"

    def command(self, *words: str, user: str = "ansible") -> list[str]:
        """The command line of a call to the agent."""
        return [f"{_BIN}/worker-client", f"--addr={self.addr}", *self._fleet.credentials(user), *words]

    def client(self, *words: str, user: str = "ansible") -> subprocess.CompletedProcess[str]:
        command = self.command(*words, user=user)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    def follow(self, job_id: str, user: str = "ansible") -> subprocess.Popen[str]:
        """A `worker-client stream --follow` that runs."""
        command = self.command("stream", job_id, "--follow", user=user)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def cli(self, *words: str) -> str:
        """The output of a call that has to succeed."""
        done = self.client(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def asked(self, *words: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.cli(*words, "--format", "json"))
        return answer

    def answers(self) -> bool:
        return self.client("info").returncode == 0

    def connect(self, user: str = "ansible") -> Client:
        """One connection for many calls: a handshake takes long in a slow machine."""
        ca, cert, key = self._fleet.files(user)
        return connect(Endpoint(self.addr, ca, cert, key), timeout=120, connect_timeout=60)

    def main_pid(self, unit: str) -> int:
        return int(self.guest.unit(unit, "MainPID")["MainPID"])

    def supervisor(self) -> int:
        return int(self.guest.root.check_output("pgrep --exact jw-supervisor").split()[0])

    def parts(self) -> tuple[int, int, int]:
        """The processes of keeper, supervisor and gateway."""
        return self.main_pid(KEEPER), self.supervisor(), self.main_pid(GATEWAY)

    def tells_ends(self) -> bool:
        """True if the kernel tells how a process ended that is nobody's child (PIDFD_GET_INFO)."""
        major, minor = self.guest.user.check_output("uname -r").split(".")[:2]
        return (int(major), int(minor)) >= (6, 15)


class Fleet:
    """Everything is in `directory`: the inventory, the PKI, what playbooks have said."""

    def __init__(self, guests: Iterable[Guest], ssh_config: str, directory: str) -> None:
        self.directory = directory
        self.inventory = os.path.join(directory, "inventory.yml")
        self.prometheus = os.path.join(directory, "prometheus")
        self.said = ""
        self.members = {guest.name: Member(self, guest) for guest in guests}
        os.makedirs(directory, exist_ok=True)
        hosts = {
            name: {"agent_address": each.addr, "pki_names": [name, each.host]}
            for name, each in self.members.items()
        }
        self.settings: dict[str, Any] = {"log_level": "debug", "metrics": {"listen": f"0.0.0.0:{METRICS_PORT}"}}
        variables = {
            "ansible_ssh_common_args": f"-F {ssh_config}",
            "ansible_python_interpreter": "/usr/bin/python3",
            "agent_wheelhouse": os.path.join(ROOT, "dist", "wheelhouse"),
            "agent_settings": self.settings,
            # Software emulation is ten times slower.
            "agent_gate_retries": 90,
            "pki_trust_domain": "fleet.test",
            "pki_passphrase": PASSPHRASE,
        }
        # Prometheus is on the controller.
        monitor = {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "monitoring_targets": os.path.join(self.prometheus, "targets"),
            "monitoring_rules": os.path.join(self.prometheus, "rules"),
            "monitoring_port": METRICS_PORT,
        }
        # Their machine is one of the hosts.
        operators = {"client_wheelhouse": variables["agent_wheelhouse"]}
        inventory = {
            "jobworker": {"hosts": hosts, "vars": variables},
            "jobworker_clients": {"hosts": dict.fromkeys(list(hosts)[-1:], operators)},
            "jobworker_monitoring": {"hosts": {"controller": monitor}},
        }
        with open(self.inventory, "w") as file:
            # Plays take hosts in the order that they stand in here.
            yaml.safe_dump(inventory, file, sort_keys=False)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members.values())

    def play(self, name: str, *options: str, until: str = "", **variables: Any) -> Play:
        """Run a playbook of the collection on all hosts at once.

        Args:
            name: of the playbook.
            options: of ansible-playbook.
            until: the play is killed when the name of this task is told.
            variables: in place of the inventory's.
        """
        command = [f"{_FLEET}/ansible-playbook", "-i", self.inventory, f"jobworker.jobworker.{name}", *options]
        command += ["--extra-vars", json.dumps(variables)]
        lines = []
        with (
            open(os.path.join(self.directory, "plays.log"), "a", buffering=1) as log,
            subprocess.Popen(
                command,
                cwd=self.directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            ) as running,
        ):
            assert running.stdout
            log.write(f"\n===== {time.strftime('%X')} {name} {' '.join(options)}\n")
            for line in running.stdout:
                lines.append(line)
                log.write(line)
                if until and line.startswith("TASK ") and until in line:
                    os.killpg(running.pid, signal.SIGKILL)
        play = Play(running.returncode, "".join(lines))
        self.said += play.output
        return play

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            # As a shell has it, from which the roles take where the PKI is.
            "PWD": self.directory,
            "PATH": f"{_FLEET}:{_BIN}:{os.environ['PATH']}",
            "ANSIBLE_COLLECTIONS_PATH": os.path.join(self.directory, "collections"),
            "ANSIBLE_PIPELINING": "1",
            # The connections of the machines' own configuration, which who takes one down ends.
            "ANSIBLE_SSH_ARGS": "",
            # A slow machine answers late.
            "ANSIBLE_TIMEOUT": "120",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "PYTHONUNBUFFERED": "1",
        }

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

    def issue(self, user: str, role: str = "WRITER") -> None:
        """Make a certificate for another user."""
        self.pki("issue", "user", user, f"--role={role}")

    def pki(self, *words: str) -> None:
        """Have worker-pki do something with the fleet's authority."""
        command = [f"{_BIN}/worker-pki", *words, "--dir=pki", "--passphrase-file=/dev/stdin"]
        subprocess.run(command, input=PASSPHRASE.encode(), cwd=self.directory, check=True, capture_output=True)

    def files(self, user: str) -> tuple[str, str, str]:
        """A user's CA certificates, certificate and key."""
        pki = os.path.join(self.directory, "pki")
        return f"{pki}/ca.pem", f"{pki}/users/{user}.pem", f"{pki}/users/{user}.key"

    def credentials(self, user: str) -> list[str]:
        ca, cert, key = self.files(user)
        return [f"--ca={ca}", f"--cert={cert}", f"--key={key}"]

    def client(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One call of worker-client to all hosts."""
        command = [f"{_BIN}/worker-client", f"--inventory={self.inventory}", "--group=jobworker"]
        command += ["--connect-timeout=60s", *self.credentials("ansible"), *words]
        environment = os.environ | {"PATH": f"{_FLEET}:{os.environ['PATH']}"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)

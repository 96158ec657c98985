"""A whole agent, started and called as a user would: `worker-agent dev` and `worker-client`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from support.certs import dev_pki
from support.leftovers import processes_with
from support.root_side import own_uids
from support.waiting import until

DEADLINE = 60
_OWN = "{{jobs: {{first_uid: {}}}, isolation: {{missing: report, writable: [{}]}}}}"
_BIN = os.path.dirname(sys.executable)


class Agent:
    """A running `worker-agent dev` on a free port, whose jobs may write below its directory.

    Attributes:
        addr: HOST:PORT.
        pki_dir: where ca.pem, writer.pem, writer.key and so on are.
    """

    def __init__(self, directory: str, config: str = "") -> None:
        self.directory = directory
        self.pki_dir = os.path.join(directory, "pki")
        self.state_dir = os.path.join(directory, "state")
        self.log_path = os.path.join(directory, "agent.log")
        self._config = os.path.join(directory, "config.yaml")
        with open(self._config, "w") as file:
            file.write(config or f"{_OWN.format(own_uids(), directory)}\n")
        if not os.path.exists(self.pki_dir):
            dev_pki().copy(self.pki_dir)
        self.process, self.addr = self._start()

    def _start(self) -> tuple[subprocess.Popen[bytes], str]:
        program = os.path.join(_BIN, "worker-agent")
        command = [program, "dev", "--dir", self.directory, "--listen", "127.0.0.1:0", "--config", self._config]
        with open(self.log_path, "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        assert process.stdout
        line = process.stdout.readline().decode()
        if not line.startswith("ready "):
            process.wait(DEADLINE)
            raise RuntimeError(self.log())
        return process, line.split()[1]

    def command(self, *args: str, role: str = "writer") -> list[str]:
        """The command line of a `worker-client` call."""
        ca, cert, key = (os.path.join(self.pki_dir, name) for name in ("ca.pem", f"{role}.pem", f"{role}.key"))
        program = os.path.join(_BIN, "worker-client")
        return [program, "--addr", self.addr, "--ca", ca, "--cert", cert, "--key", key, *args]

    def cli(
        self, *args: str, role: str = "writer", input: bytes | None = None, check: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*args, role=role), input=input, capture_output=True, check=check, timeout=DEADLINE
        )

    def start_job(self, *args: str) -> str:
        """`worker-client start` with these arguments; the job's id."""
        return self.cli("start", *args, check=True).stdout.decode().strip()

    def query(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = json.loads(self.cli("query", job_id, "--format", "json", check=True).stdout)
        return job

    def pids(self, part: str) -> list[int]:
        """The processes that are this part of it, see `part_of`."""
        return [pid for pid in processes_with(self.directory) if part_of(pid) == part]

    def pid(self, part: str) -> int:
        """The one process that is this part of it."""
        (pid,) = self.pids(part)
        return pid

    def log(self) -> str:
        with open(self.log_path) as file:
            return file.read()

    def kill(self) -> None:
        """SIGKILL to `worker-agent dev` alone."""
        self.process.kill()
        self.process.wait(DEADLINE)
        self._close_output()

    def restart(self, config: str = "") -> None:
        """Start it again, with another configuration if there is one."""
        if config:
            with open(self._config, "w") as file:
                file.write(config)
        self.process, self.addr = self._start()

    def close(self) -> int:
        """SIGTERM, as a user would; the exit status."""
        if self.process.poll() == -signal.SIGKILL and processes_with(self.directory):
            # Who takes over what is left ends it as well.
            self.restart()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(DEADLINE)
        self._close_output()
        return status

    def _close_output(self) -> None:
        if self.process.stdout:
            self.process.stdout.close()


def part_of(pid: int) -> str:
    """The part of an agent that this process is; empty for any other, and for one that is gone."""
    try:
        with open(f"/proc/{pid}/comm") as comm, open(f"/proc/{pid}/cmdline") as line:
            name, command = comm.read().strip(), line.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    if name in ("jw-supervisor", "jw-flusher"):
        return name.removeprefix("jw-")
    if "keeper/__main__.py" in command:
        return "keeper"
    return "gateway" if "jobworker.gateway" in command else ""


@contextlib.contextmanager
def running_agent(config: str = "") -> Iterator[Agent]:
    """An agent in a directory of its own, which is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        # Jobs run as other users, and pass through here.
        os.chmod(directory, 0o755)  # noqa: S103
        agent = Agent(directory, config)
        try:
            yield agent
        finally:
            agent.close()
            # Nobody waits for what only flushes, nor for what was taken over.
            until(lambda: processes_with(directory), [])

"""A host of the lab, a virtual machine or a container, that the tests run in and look at from outside."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import testinfra  # type: ignore[import-untyped]
from testinfra.host import Host  # type: ignore[import-untyped]

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
RESULTS = os.path.join(ROOT, "build", "vms")
HOME = "/opt/jobworker-tests"
BIN = f"{HOME}/venv/bin"
# The kernel's files of the limits of a cgroup; of v1 with their controllers.
_LIMITS_V2 = ("cpu.max", "cpu.weight", "cpuset.cpus", "io.max", "memory.max", "memory.swap.max", "pids.max")
# How much tests do, which is said in the environment.
_SIZES = ("JOBWORKER_EXAMPLES", "JOBWORKER_JOBS", "JOBWORKER_LOAD_MIB", "JOBWORKER_RELOADS")
_LIMITS_V1 = (
    ("blkio", "blkio.throttle.read_bps_device"),
    ("blkio", "blkio.throttle.read_iops_device"),
    ("blkio", "blkio.throttle.write_bps_device"),
    ("blkio", "blkio.throttle.write_iops_device"),
    ("cpu", "cpu.cfs_period_us"),
    ("cpu", "cpu.cfs_quota_us"),
    ("cpu", "cpu.shares"),
    ("cpuset", "cpuset.cpus"),
    ("memory", "memory.limit_in_bytes"),
    ("pids", "pids.max"),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a machine is there for.

    Attributes:
        mode: what the agent calls its cgroups.
        mounts: type of the file system on /sys/fs/cgroup, and how many cgroup2 are mounted once it has booted.
        python: version of its own interpreter.
        container: true if it has no kernel of its own.
    """

    mode: str
    mounts: tuple[str, int]
    python: str
    container: bool = False


KINDS = {
    "v1": Kind("v1", ("tmpfs", 0), "3.11"),
    "v2": Kind("v2", ("cgroup2fs", 1), "3.11"),
    "v2-next": Kind("v2", ("cgroup2fs", 1), "3.13"),
    "c-v1": Kind("v1", ("tmpfs", 0), "3.11", container=True),
    "c-hybrid": Kind("hybrid", ("tmpfs", 1), "3.11", container=True),
}
# Of a second fleet.
KINDS |= {f"{name}-2": kind for name, kind in KINDS.items() if kind.container}


def machine_names() -> list[str]:
    """The machines that this run is for."""
    return os.environ.get("JOBWORKER_VM", "").split()


def lab() -> list[Guest]:
    """The machines that this run is for; their cgroups have been looked at before anything else."""
    if not machine_names():
        pytest.skip("runs for virtual machines: make vms-up vms-test")
    ssh, wheels = os.environ["JOBWORKER_VM_SSH"], os.environ["JOBWORKER_VM_WHEELS"]
    guests = [Guest(name, ssh, wheels) for name in machine_names()]
    for guest in guests:
        guest.assert_mode()
    return guests


class Guest:
    """One running machine.

    Attributes:
        root, user: how testinfra reaches it, as root and as an ordinary user.
    """

    def __init__(self, name: str, ssh_config: str, wheels: str) -> None:
        self.name = name
        self.kind = KINDS[name]
        self._ssh = ("ssh", "-F", ssh_config, name)
        self._wheels = os.path.join(wheels, self.kind.python)
        self.user: Host = testinfra.get_host(f"ssh://{name}", ssh_config=ssh_config, timeout=300)
        self.root: Host = testinfra.get_host(f"ssh://{name}", ssh_config=ssh_config, timeout=300, sudo=True)

    @property
    def address(self) -> str:
        """The machine's own, which it is reached under."""
        config = subprocess.run([*self._ssh, "-G"], capture_output=True, text=True, check=True).stdout
        return next(line.split()[1] for line in config.splitlines() if line.startswith("hostname "))

    def unit(self, name: str, *names: str) -> dict[str, str]:
        """Properties of a unit, as systemd has them."""
        words = shlex.join(["systemctl", "show", name, *(f"--property={each}" for each in names)])
        return dict(line.split("=", 1) for line in self.root.check_output(words).splitlines())

    def cgroups_of(self, pid: int) -> dict[str, str]:
        """Where a process is, by the name of the controller; of v2 that is empty."""
        lines = [line.split(":", 2) for line in self.root.check_output(f"cat /proc/{pid}/cgroup").splitlines()]
        return {name: path for _, names, path in lines for name in names.split(",")}

    def limits_of(self, pid: int) -> dict[str, str]:
        """What the kernel has as limits of a process's cgroup, by file: `cpu.max`, or `cpu/cpu.cfs_quota_us`."""
        where = self.cgroups_of(pid)
        if self.kind.mode == "v2":
            names = {f"{where['']}/{name}": name for name in _LIMITS_V2}
        else:
            names = {f"/{each}{where[each]}/{file}": f"{each}/{file}" for each, file in _LIMITS_V1}
        # A host that counts no swap has no file for that.
        look = "cd /sys/fs/cgroup; for file; do echo $file $(cat .$file); done 2>/dev/null"
        lines = self.root.check_output(f"sh -c %s sh {' '.join(names)}", look).splitlines()
        return {names[path]: value for path, _, value in (line.partition(" ") for line in lines)}

    def assert_mode(self) -> None:
        """Whatever is tested in here would prove nothing if the machine had other cgroups than it should."""
        assert self.user.check_output("stat -fc %T /sys/fs/cgroup") == self.kind.mounts[0]
        # The mounts of init: an agent that runs may have its own.
        found = self.root.run("grep -c ' - cgroup2 ' /proc/1/mountinfo").stdout.strip()
        assert int(found) == self.kind.mounts[1]

    def deploy(self) -> None:
        """Copy the working tree, and install jobworker and what its tests need into a virtual environment."""
        # Tests of an earlier run were root's, and have left files there.
        self.root.check_output(f"rm -rf {HOME}/tree; install -d -o vagrant {HOME} {HOME}/wheels {HOME}/tree")
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
        ).stdout
        names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
        self.copy(f"{HOME}/tree", ROOT, [name for name in names if os.path.exists(os.path.join(ROOT, name))])
        self.copy(f"{HOME}/wheels", self._wheels, os.listdir(self._wheels))
        self.root.check_output(
            f"set -e; cd {HOME}; pip() {{ python3 -m pip --python {BIN}/python install --quiet --no-compile "
            '--no-index --find-links wheels --disable-pip-version-check "$@"; }; '
            "cmp -s wheels/recipe installed || { "
            f"rm -rf {HOME}/venv; python3 -m venv --without-pip venv; "
            "pip jobworker pytest pytest-timeout hypothesis; cp wheels/recipe installed; }; "
            "pip --no-deps --force-reinstall jobworker"
        )

    def copy(self, target: str, source: str, names: list[str]) -> None:
        """Copy files of a directory out here into one in there, as the ordinary user."""
        packed = subprocess.run(
            ["tar", "-C", source, "-c", "--null", "--files-from=-"],
            input=b"\0".join(os.fsencode(name) for name in names),
            capture_output=True,
            check=True,
        ).stdout
        subprocess.run([*self._ssh, f"tar -xC {target}"], input=packed, check=True)

    def run_suite(self, *tests: str, name: str) -> int:
        """Run tests of the copied tree in there as root; pytest's exit status.

        They do as much as is said out here. What they say and their JUnit report are found in build/vms.
        """
        report = f"{HOME}/{name}.xml"
        pytest = f"{BIN}/python -m pytest -p no:cacheprovider --junitxml={report}"
        sizes = [f"{name}={os.environ[name]}" for name in _SIZES if name in os.environ]
        # In software emulation; with a system call or a context switch it is more.
        variables = shlex.join(["JOBWORKER_SLOWER=10", *sizes])
        command = f"cd {HOME}/tree && sudo {variables} {pytest} {shlex.join(tests)}"
        stem = os.path.join(RESULTS, f"{self.name}-{name}")
        with open(f"{stem}.txt", "wb") as log:
            status = subprocess.run([*self._ssh, command], stdout=log, stderr=log, check=False)
        with open(f"{stem}.xml", "wb") as file:
            subprocess.run([*self._ssh, f"cat {report}"], stdout=file, check=True)
        return status.returncode

    @contextlib.contextmanager
    def agent(self, *prefix: str) -> Iterator[GuestAgent]:
        """A running `worker-agent dev`, started behind the words of `prefix`, such as `sudo`."""
        directory: str = self.user.check_output(f"mktemp -d {HOME}/agent-XXXXXX")
        self.user.check_output(f"chmod 755 {directory}")
        words = [*prefix, "sh", "-c", 'echo $$; exec "$@"', "sh"]
        words += [f"{BIN}/worker-agent", "dev", "--dir", f"{directory}/dev", "--listen", "127.0.0.1:0"]
        call = [*self._ssh, shlex.join(words)]
        with subprocess.Popen(call, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as ssh:
            assert ssh.stdout
            pid = int(ssh.stdout.readline())
            said = ssh.stdout.readline().decode().split()
            assert said[:1] == ["ready"], said
            try:
                yield GuestAgent(self.root, f"{directory}/dev", said[1])
            finally:
                self.root.check_output(f"kill -TERM {pid}")
                status = ssh.wait(600)
        assert status == 0
        # Something of the agent's that is still mounted would not go.
        self.root.check_output(f"rm -r {directory}")


class GuestAgent:
    """A `worker-agent dev` inside a guest, called by a `worker-client` beside it."""

    def __init__(self, host: Host, directory: str, addr: str) -> None:
        self._host, self._directory = host, directory
        self._call = f"{BIN}/worker-client --addr {addr} --ca {directory}/pki/ca.pem "
        self._call += f"--cert {directory}/pki/writer.pem --key {directory}/pki/writer.key "

    def cli(self, *words: str) -> str:
        """The output of a call that has to succeed."""
        output: str = self._host.check_output(self._call + shlex.join(words))
        return output

    def asked(self, *words: str) -> dict[str, Any]:
        """The object that a call prints as JSON."""
        answer: dict[str, Any] = json.loads(self.cli(*words, "--format", "json"))
        return answer

    def parts(self) -> dict[str, int]:
        """The processes of keeper, supervisor and gateway."""
        found = {}
        for line in self._host.check_output("ps -e -o pid=,comm=,args=").splitlines():
            pid, name, command = line.split(None, 2)
            if self._directory in command and (name in ("jw-keeper", "jw-supervisor") or ".gateway " in command):
                found["gateway" if ".gateway " in command else name] = int(pid)
        return found

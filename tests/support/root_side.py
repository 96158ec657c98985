"""The keeper and the supervisor alone, spoken to over their own socket: no gateway, no TLS."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jobworker
from jobworker.kernel import pidfd
from jobworker.settings import schema
from jobworker.wire import messages
from support import seccomp
from support.files import put
from support.link import DEADLINE, Link
from support.service_manager import ServiceManager

_ROOT = os.path.dirname(jobworker.__file__)
# The limit that the agent is started with, as service managers have it, and raises for itself.
_OPEN_FILES = 128
# Users of one agent's jobs are not those of another's that runs beside it, nor of another test run's.
_RUNS, _UIDS_OF_RUN, _UIDS_OF_AGENT = 128, 10_000_000, 65_536
_UID_RANGES = itertools.count(600_000_000 + os.getpid() % _RUNS * _UIDS_OF_RUN, _UIDS_OF_AGENT)


def own_uids() -> int:
    """The first user id of a range that no other agent has."""
    return next(_UID_RANGES)


class RootSide:
    """A running keeper with its supervisor.

    Args:
        directory: where it keeps everything.
        as_user: run it as this user, with the system's Python and a copy of the package that the user can read.
        python: the interpreter that runs it; by default the tests' own.
        without_call: the number of a system call that it is to do without.
        own_package: run a copy of the package, `package`, that the test may change.
        manager: the service manager that starts it.
        isolation: settings; by default jobs may write in the directory, and an ordinary user's agent does what
            it can.
        audit: settings.
        quotas: settings.
        policy: rules, in YAML; empty for none.
        limits: profiles and caps, in YAML; empty for none.
        gateway_uid: the user that links are of, by default the agent's own.
        wrapper: a command that executes the agent in what it has prepared.
        jobs: settings.
    """

    def __init__(
        self,
        directory: str,
        *,
        as_user: int | None = None,
        python: str = sys.executable,
        own_package: bool = False,
        without_call: int | None = None,
        manager: ServiceManager | None = None,
        isolation: schema.IsolationSettings | None = None,
        audit: schema.AuditSettings | None = None,
        quotas: schema.QuotaSettings | None = None,
        policy: str = "",
        limits: str = "",
        gateway_uid: int | None = None,
        wrapper: tuple[str, ...] = (),
        **jobs: Any,
    ) -> None:
        missing = "refuse" if as_user is None else "report"
        self._without_call, self._manager = without_call, manager
        self._python, self.package = python if as_user is None else "/usr/bin/python3", _ROOT
        if own_package or as_user is not None:
            leave = shutil.ignore_patterns("__pycache__")
            self.package = shutil.copytree(_ROOT, os.path.join(directory, "package", "jobworker"), ignore=leave)
        self.state_dir = os.path.join(directory, "state")
        os.makedirs(self.state_dir, exist_ok=True)
        self.settings = schema.Settings(
            state_dir=self.state_dir,
            listen="127.0.0.1:0",
            tls=schema.TlsSettings("", "", ""),
            jobs=schema.JobSettings(**{"first_uid": own_uids()} | jobs),
            isolation=isolation or schema.IsolationSettings(missing=missing, writable=(directory,)),
            audit=audit or schema.AuditSettings(),
            quotas=quotas or schema.QuotaSettings(),
            gateway_uid=gateway_uid or (os.getuid() if as_user is None else as_user),
            policy=os.path.join(directory, "policy.yaml") if policy else "",
            limits=os.path.join(directory, "limits.yaml") if limits else "",
        )
        self._wrapper = wrapper
        if policy:
            self.write_policy(policy)
        if limits:
            self.write_limits(limits)
        self._settings_path = os.path.join(directory, "settings.json")
        schema.write(self.settings, self._settings_path)
        self._as_user = as_user
        if as_user is not None:
            for path in (directory, self.state_dir, self._settings_path):
                os.chown(path, as_user, as_user)
        self._links: list[Link] = []
        self._successor: int | None = None
        self.log_path = os.path.join(directory, "keeper.log")
        self.start_again()

    def write_policy(self, text: str) -> None:
        """Replace the policy file."""
        put(self.settings.policy, text.encode(), 0o644)

    def write_limits(self, text: str) -> None:
        """Replace the limits file."""
        put(self.settings.limits, text.encode(), 0o644)

    def change(self, name: str, line: str, by: str) -> None:
        """Have the next supervisor run something else in the place of a line; for an `own_package`.

        Args:
            name: of the file, below the package.
            line: one or more whole lines, which the file has once.
            by: what it has then.
        """
        path = Path(self.package, name)
        text = path.read_text()
        assert text.count(line) == 1
        path.write_text(text.replace(line, by))

    def set_version(self, version: str) -> None:
        """Have the next supervisor be of another version; for an `own_package`."""
        path = Path(self.package, "__init__.py")
        text = path.read_text()
        path.write_text(text[: text.index("__version__")] + f'__version__ = "{version}"\n')
        # Another second of modification, or the cached bytecode passes for the new file's.
        shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)

    def _start(self) -> subprocess.Popen[bytes]:
        reading, low = os.pipe()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        # Out of the way of those that a service manager hands over.
        writing = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 2000)
        os.close(low)
        program = os.path.join(self.package, "keeper", "__main__.py")
        command = [*self._wrapper, self._python, "-I", "-S", "-E", "-X", "utf8", program]
        command += ["--settings", self._settings_path, "--ready-fd", str(writing)]
        keep = [writing]
        if self._manager:
            command = self._manager.command(command)
            keep += self._manager.stored.values()
        with open(self.log_path, "ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=keep,
                start_new_session=True,
                preexec_fn=self._before_exec,
            )
        os.close(writing)
        with open(reading, "rb") as ready:
            said = ready.read()
        if said != b"ready\n":
            process.wait(DEADLINE)
            raise RuntimeError(self.log())
        return process

    def _before_exec(self) -> None:
        # Oddities of whoever starts an agent, which its jobs are not to notice.
        for signum in (signal.SIGHUP, signal.SIGUSR1):
            signal.signal(signum, signal.SIG_IGN)
        os.umask(0o077)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("300")
        # From here on nothing is opened: this process may have more than that already.
        resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        if self._as_user is None and os.geteuid() == 0:
            os.nice(-5)
            os.setgroups([0, 4, 27])
        elif self._as_user is not None:
            os.setgroups([])
            os.setresgid(self._as_user, self._as_user, self._as_user)
            os.setresuid(self._as_user, self._as_user, self._as_user)
        if self._without_call is not None:
            seccomp.take_away(self._without_call)

    def restart(self, **jobs: Any) -> None:
        """End the agent, and start it again on the same directory, with other settings if there are any."""
        self.close()
        self._links.clear()
        self.settings = replace(self.settings, jobs=replace(self.settings.jobs, **jobs))
        schema.write(self.settings, self._settings_path)
        self.start_again()

    def link(self, **options: bool) -> Link:
        # The supervisor listens to its own user alone, and who connects is who the kernel says connects.
        os.seteuid(self.settings.gateway_uid)
        try:
            link = Link(self.settings.socket_path, **options)
        finally:
            os.seteuid(os.getuid())
        self._links.append(link)
        return link

    def reconnect(self, **options: bool) -> Link:
        """A connection to the supervisor that comes after one that was killed."""
        links: list[Link] = []

        def connected() -> bool:
            # The socket is its owner's alone for a moment, before it is the gateway's.
            with contextlib.suppress(ConnectionError, PermissionError):
                links.append(self.link(**options))
            return bool(links)

        # Between two supervisors nobody listens.
        self.wait_for(connected)
        return links[0]

    def start_again(self) -> None:
        """Start the keeper again after its death, as a service manager does."""
        self.keeper = self._start()
        self.keeper_pid = self.keeper.pid

    def kill_keeper(self) -> None:
        """Kill the keeper; the supervisor takes its place."""
        self._successor = os.pidfd_open(self.supervisor_pid())
        self.keeper_pid = self.supervisor_pid()
        self.keeper.kill()
        self.keeper.wait(DEADLINE)

    def freeze_keeper(self) -> None:
        """Stop the keeper, so that nobody starts a supervisor or reaps a process until it is let go on."""
        self.keeper.send_signal(signal.SIGSTOP)

    def thaw_keeper(self) -> None:
        self.keeper.send_signal(signal.SIGCONT)

    def kill_supervisor(self, link: Link, *, subscribe: bool = True) -> Link:
        """SIGKILL; in place of this connection one to the next supervisor, by when everything is adopted."""
        os.kill(self.supervisor_pid(), signal.SIGKILL)
        link.drain()
        link.close()
        return self.reconnect(subscribe=subscribe)

    def upgrade(self, link: Link) -> Link:
        """Execute what is in place of the program now; in place of this connection one to that."""
        link.ask(messages.Upgrade())
        link.drain()
        link.close()
        return self.reconnect(subscribe=True)

    def supervisor_pid(self) -> int:
        return self.child("jw-supervisor")

    def open_files(self, link: Link) -> int:
        """How many descriptors the supervisor has, once it has dealt with all that was said to it before."""
        # Answers go out after everything of their round was dealt with, ended connections included.
        link.ask(messages.Hello(messages.PROTOCOL, subscribe=False))
        return len(os.listdir(f"/proc/{self.supervisor_pid()}/fd"))

    def flusher_pid(self) -> int:
        return self._helper("jw-flusher")

    def compressor_pid(self) -> int:
        return self._helper("jw-compressor")

    def _helper(self, name: str) -> int:
        """One that is forked twice, and bears its name from when it runs."""
        found: list[int] = []

        def look() -> bool:
            found.append(self.child(name))
            return True

        self.wait_for(look)
        return found[0]

    def child(self, name: str) -> int:
        """The keeper's child of this name.

        Raises:
            LookupError: there is none.
        """
        with open(f"/proc/{self.keeper_pid}/task/{self.keeper_pid}/children") as file:
            pids = [int(text) for text in file.read().split()]
        for pid in pids:
            # One that has just ended is not it.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/comm") as file:
                if file.read() == f"{name}\n":
                    return pid
        raise LookupError(name)

    def keeper_arguments(self) -> list[str]:
        with open(f"/proc/{self.keeper.pid}/cmdline") as file:
            return file.read().split("\0")

    def wait_for(self, state: Callable[[], bool]) -> None:
        """Wait for a state of the processes that nothing tells of."""
        while True:
            with contextlib.suppress(LookupError, FileNotFoundError):
                if state():
                    return
            assert self._successor is not None or self.keeper.poll() is None, self.log()
            time.sleep(0.002)

    def log(self) -> str:
        with open(self.log_path) as file:
            return file.read()

    def close(self) -> int:
        """End all jobs, the supervisor and the keeper; the keeper's exit status."""
        for link in self._links:
            link.close()
        self._let_go_on()
        if self.keeper.poll() is None:
            self.keeper.terminate()
        if self._successor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._successor, signal.SIGTERM)
            assert select.select([self._successor], [], [], DEADLINE)[0], self.log()
            os.close(self._successor)
            self._successor = None
        try:
            return self.keeper.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            # This test fails, and no other for what it would leave behind.
            with contextlib.suppress(LookupError):
                supervisor = self.supervisor_pid()
                self.keeper.kill()
                os.kill(supervisor, signal.SIGKILL)
            self.keeper.kill()
            self.keeper.wait()
            raise

    def _let_go_on(self) -> None:
        """A test that has failed may have left keeper and supervisor stopped."""
        self.keeper.send_signal(signal.SIGCONT)
        with contextlib.suppress(LookupError, FileNotFoundError, ProcessLookupError):
            os.kill(self.supervisor_pid(), signal.SIGCONT)
        if self._successor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._successor, signal.SIGCONT)


@contextlib.contextmanager
def root_side(directory: str, **options: Any) -> Iterator[RootSide]:
    side = RootSide(directory, **options)
    try:
        yield side
    finally:
        side.close()


@contextlib.contextmanager
def fresh_root_side(parent: str | None = None, **options: Any) -> Iterator[RootSide]:
    """Keeper and supervisor in a directory of their own, which jobs get through, who are other users."""
    with tempfile.TemporaryDirectory(prefix="jobworker-test-", dir=parent) as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        with root_side(directory, **options) as running:
            yield running


def tells_ends() -> bool:
    """True if this kernel keeps how a process ended with its pidfd, as Linux 6.15 and later do."""
    child = os.fork()
    if child == 0:
        os._exit(3)
    fd = os.pidfd_open(child)
    os.waitpid(child, 0)
    try:
        return pidfd.end(fd) == (os.CLD_EXITED, 3)
    except OSError:
        return False
    finally:
        os.close(fd)

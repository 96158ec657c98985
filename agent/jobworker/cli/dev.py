"""`worker-agent dev`: the whole agent in the foreground.

Starts the keeper (which starts the supervisor) unless an earlier run was killed and has left them with their
jobs, then the gateway, and stays attached to the supervisor: a supervisor that nobody attends to ends when its
last job has.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from jobworker import root_side
from jobworker.cli import service
from jobworker.cli.owner_link import OwnerLink, next_of
from jobworker.cli.service import AgentProblem
from jobworker.errors import AgentUnavailable, InvalidField, JobWorkerError
from jobworker.findings import by_reason
from jobworker.limits import Enforcement
from jobworker.settings import schema
from jobworker.settings.schema import IsolationSettings, Settings, TlsSettings
from jobworker.wire import messages
from jobworker.wire.host import HostInfo
from jobworker_pki import dev as dev_pki

_GATEWAY = (sys.executable, "-m", "jobworker.gateway")
# What a process may take to come up on a slow machine, or to end once it was told to, in seconds.
_PATIENCE = 60
_LOOK_AGAIN = 0.02
# Of starting a gateway that is killed before it serves.
_ATTEMPTS = 10


def run(directory: str, listen: str, config: str | None) -> int:
    """Serve until SIGTERM or Ctrl-C; the exit status.

    Raises:
        JobWorkerError: what keeps the agent from starting.
    """
    _check_loopback(listen)
    directory = os.path.realpath(directory)
    # Nobody lets go of it: it is ours for as long as we are.
    _claim(directory)
    pki = os.path.join(directory, "pki")
    dev_pki.ensure(pki, dev_pki.Wanted(), renew=False, progress=_say)
    settings = _settings(directory, pki, listen, config)
    settings_path = os.path.join(directory, "settings.json")
    schema.write(settings, settings_path)
    # Jobs end before the gateway, so that whoever follows one sees its end.
    with _signals() as wakeup, contextlib.ExitStack() as last, contextlib.ExitStack() as first:
        supervisor = _Supervisor(settings, settings_path)
        last.callback(supervisor.end)
        first.callback(supervisor.stop_jobs)
        _explain(supervisor.host())
        gateway = _Gateway(directory, settings, settings_path)
        last.callback(gateway.end)
        # The one line on standard output, for whoever waits for it.
        sys.stdout.write(f"ready {gateway.address} pki={pki}\n")
        sys.stdout.flush()
        return _serve(wakeup, supervisor, gateway)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _check_loopback(listen: str) -> None:
    host = listen.rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    problem = f"{listen!r:.60} is no loopback address with a port, and development certificates are for no other"
    raise InvalidField("listen", problem, "127.0.0.1:7443")


def _settings(directory: str, pki: str, listen: str, config: str | None) -> Settings:
    ca, cert, key = (os.path.join(pki, name) for name in ("ca.pem", "server.pem", "server.key"))
    own = Settings(
        state_dir=os.path.join(directory, "state"),
        listen=listen,
        tls=TlsSettings(ca, cert, key),
        gateway_uid=os.getuid(),
        # Whoever tries the agent out need not be root; what is missing is said at the start.
        isolation=IsolationSettings(missing="report"),
    )
    if config is None:
        return own
    # Where everything is stays as asked for on the command line, and the certificates are those made here.
    loaded = service.canonical(config, own)
    tls = replace(loaded.tls, ca=ca, cert=cert, key=key, role_oid=own.tls.role_oid)
    return replace(loaded, state_dir=own.state_dir, listen=listen, gateway_uid=own.gateway_uid, tls=tls)


def _claim(directory: str) -> None:
    """Make the directory if it is not there, and have it alone.

    Raises:
        AgentProblem: it is somebody else's, or another run's.
    """
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        lock = _lock(os.path.join(directory, "dev.lock"))
    except OSError as error:
        problem = f"{error.filename}: cannot be written: {error.strerror}"
        raise AgentProblem(problem, "give a --dir of your own") from None
    if lock is None:
        problem = f"another `worker-agent dev` is running on {directory}"
        raise AgentProblem(problem, "end that one, or give another --dir")


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that is readable once SIGTERM or SIGINT has come."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: None)
    yield reading


class _Killed(AgentProblem):
    """A part was killed by a signal before it was ready."""


def _lock(path: str, *, wait: bool = False) -> int | None:
    """Take a lock for as long as the descriptor, or a copy of it, is open; None if another process has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _start(
    command: Sequence[str], part: str, *, stdin: int = subprocess.DEVNULL, keep_fds: tuple[int, ...] = ()
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a part of the agent; the process, and the line that it says when it is ready.

    Raises:
        AgentProblem: it ended instead.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with open(reading, "rb") as ready:
        process = subprocess.Popen(
            (*command, "--ready-fd", str(writing)),
            stdin=stdin,
            pass_fds=(writing, *keep_fds),
            start_new_session=True,
        )
        os.close(writing)
        line = ready.readline()
    if not line:
        killed = process.wait(_PATIENCE) < 0
        raise (_Killed if killed else AgentProblem)(f"the {part} did not start", "what it said stands above")
    return process, line.decode().strip()


def _explain(host: HostInfo) -> None:
    """Say what the host gives and what it does not."""
    _say(f"cgroups: {host.cgroup_mode}; jobs run as {'a user each' if host.user_per_job else 'you'}")

    def limits(enforcement: Enforcement) -> list[tuple[str, str]]:
        return [(limit.detail, limit.name) for limit in host.limits if limit.enforcement is enforcement]

    lacking = {
        "no sandbox": [(part.reason, part.part.value) for part in host.isolation if part.reason],
        "no limits": limits(Enforcement.UNSUPPORTED),
        "limits in part only": limits(Enforcement.BEST_EFFORT),
    }
    for what, pairs in lacking.items():
        for told in by_reason(pairs):
            _say(f"  {what}: {told}")


class _Supervisor:
    """The supervisor that we attend to: of an earlier run, or a new one."""

    def __init__(self, settings: Settings, settings_path: str) -> None:
        self._path = settings.socket_path
        self._keeper: subprocess.Popen[bytes] | None = None
        self._away_since = 0.0
        try:
            self.link = OwnerLink(self._path, attend=True)
        except OSError:
            self._keeper, _ = _start(root_side.keeper("--settings", settings_path), "supervisor")
            self.link = OwnerLink(self._path, attend=True)
        else:
            _say("taking over what an earlier run has left running")
            self.link.ask(messages.Upgrade())
            self.link = next_of(self.link, self._path, attend=True)

    def fileno(self) -> int:
        """Readable once it has died, or executed itself anew; negative until `reattach` has found it again."""
        return self.link.fileno()

    @property
    def is_away(self) -> bool:
        return self.fileno() < 0

    def host(self) -> HostInfo:
        welcome: messages.Welcome = self.link.ask(messages.Hello(messages.PROTOCOL, subscribe=False))
        return welcome.host

    def reattach(self) -> None:
        """Look whether it serves again.

        Raises:
            OSError: it has been away for too long.
        """
        if not self.is_away:
            self.link.close()
            self._away_since = time.monotonic()
        try:
            self.link = OwnerLink(self._path, attend=True)
        except (ConnectionError, FileNotFoundError, AgentUnavailable):
            if time.monotonic() > self._away_since + _PATIENCE:
                raise
        else:
            _say("the supervisor is back")

    def stop_jobs(self) -> None:
        """Stop all jobs, and have the supervisor take no more of them."""
        with contextlib.suppress(OSError, JobWorkerError):
            self.link.ask(messages.Shutdown())

    def end(self) -> None:
        """Leave the supervisor, which ends with its keeper once no job is left."""
        self.link.close()
        if self._keeper:
            self._keeper.wait(_PATIENCE)


class _Gateway:
    """The gateway, which may die and is started again at the same address.

    It holds a copy of a lock, and ends when the pipe that is its standard input closes: after a run that was
    killed, the next one waits here until that run's gateway has let go of the port.
    """

    def __init__(self, directory: str, settings: Settings, settings_path: str) -> None:
        self._lock_path = os.path.join(directory, "gateway.lock")
        self._command = (*_GATEWAY, "--settings", settings_path, "--while-stdin")
        self.start()
        # A port that the kernel has chosen is the one from now on.
        schema.write(replace(settings, listen=self.address), settings_path)

    def start(self) -> None:
        """Start it.

        Raises:
            AgentProblem: it does not come up.
        """
        lock = _lock(self._lock_path, wait=True)
        keep_fds = () if lock is None else (lock,)
        try:
            self._process, self.address = _start(
                self._command, "gateway", stdin=subprocess.PIPE, keep_fds=keep_fds
            )
        finally:
            for fd in keep_fds:
                os.close(fd)
        self._pidfd = os.pidfd_open(self._process.pid)

    def fileno(self) -> int:
        """Readable once it has ended."""
        return self._pidfd

    def restart(self) -> None:
        """After it has died.

        Raises:
            AgentProblem: it does not come up again.
        """
        self.end()
        for attempt in range(_ATTEMPTS):
            _say("the gateway has died and is started again")
            try:
                self.start()
            except _Killed:
                # Whoever kills it may do so before it has come up.
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                break

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = -1


def _serve(wakeup: int, supervisor: _Supervisor, gateway: _Gateway) -> int:
    """Wait for a signal, or for the end of a part that does not come back."""
    try:
        while True:
            ready = _wait(wakeup, gateway, supervisor)
            if wakeup in ready:
                _say("ending: stopping all jobs")
                return 0
            # It takes its time to start, and does not need the supervisor for that.
            if gateway.fileno() in ready:
                gateway.restart()
            else:
                supervisor.reattach()
    except (OSError, JobWorkerError) as error:
        _say(f"worker-agent: a part of the agent has died and does not come back: {error}")
        return 1


def _wait(wakeup: int, gateway: _Gateway, supervisor: _Supervisor) -> set[int]:
    """Wait until one of these has something to tell; which do. A supervisor that is away is waited for in vain."""
    poll = select.poll()
    poll.register(wakeup, select.POLLIN)
    poll.register(gateway, select.POLLIN)
    if supervisor.is_away:
        # The kernel tells nobody that a path is being listened on again.
        return {fd for fd, _ in poll.poll(_LOOK_AGAIN * 1000)}
    poll.register(supervisor, select.POLLIN)
    return {fd for fd, _ in poll.poll()}

"""What a service manager starts: the keeper and the gateway, from one configuration file.

The file is read by a process of its own without privileges (`worker-agent config canonical`), so that no YAML
parser is ever in the root side's address space. Then this process becomes the program that it was asked for: same
pid, with the notification socket and the stored descriptors that the service manager gave it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import NoReturn

from jobworker import codec, root_side
from jobworker.cli import owner_link
from jobworker.cli.owner_link import OwnerLink
from jobworker.errors import InvalidField, JobWorkerError
from jobworker.settings import schema
from jobworker.settings.schema import Settings
from jobworker.wire import messages

# Isolated: no variable and no directory of a user's decides what is imported.
_PYTHON = (sys.executable, "-I")
_PATIENCE = 60
_START = "systemctl start jobworker-keeper"


@dataclass(eq=False)
class AgentProblem(JobWorkerError):
    """Why an agent cannot be started on this host, or not be reached.

    Attributes:
        problem: what is in the way.
        fix: what to do about it.
    """

    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.fix}"


def canonical(config: str, over: Settings | None = None) -> Settings:
    """The settings that a configuration file makes.

    Args:
        config: the file.
        over: what it is laid over; without it the file has to say all that has no default.

    Raises:
        InvalidField: all that is wrong with it.
        OSError: it cannot be read.
    """
    command = [*_PYTHON, "-m", "jobworker.cli.worker_agent", "config", "canonical"]
    if over is not None:
        command += ["--over", codec.dumps(over).decode("utf-8", "surrogatepass")]
    with open(config, "rb") as file:
        made = subprocess.run(command, stdin=file, capture_output=True, check=False, timeout=_PATIENCE)
    if made.returncode:
        said = made.stderr.decode(errors="replace").strip().splitlines()
        # Each mistake is one that can be gone to.
        raise InvalidField(config, f"\n{config}: ".join(said).removeprefix("worker-agent: "))
    return codec.loads(Settings, made.stdout)


def keeper(config: str, gateway_user: str, settings_path: str) -> NoReturn:
    """Become the keeper.

    Args:
        config: the configuration file.
        gateway_user: who the gateway runs as; empty to leave that to `gateway_uid`.
        settings_path: where root's own processes find their settings, at each start and upgrade.

    Raises:
        JobWorkerError: the configuration is wrong, there is no such user, or no place for the settings.
        OSError: the configuration cannot be read.
    """
    _write(with_user(canonical(config), gateway_user), settings_path)
    command = root_side.keeper("--settings", settings_path)
    os.execv(command[0], command)


def gateway(config: str) -> NoReturn:
    """Become the gateway.

    Raises:
        JobWorkerError: the configuration is wrong, or this is root.
        OSError: a file cannot be read.
    """
    if os.geteuid() == 0:
        problem = "the gateway is what clients reach, and does not run as root"
        raise AgentProblem(problem, "it is started by its unit: systemctl start jobworker-gateway")
    settings = os.memfd_create("settings", 0)
    os.write(settings, codec.dumps(canonical(config)))
    command = [*_PYTHON, "-m", "jobworker.gateway", "--settings", f"/proc/self/fd/{settings}"]
    os.execv(command[0], command)


def upgrade(config: str, gateway_user: str, settings_path: str) -> tuple[str, str]:
    """Have the running agent execute the code that is installed now, with the settings that the file has now.

    The gateway's user stays who it is, unless the file or `gateway_user` names another one.

    Returns:
        The version before and the one after.

    Raises:
        JobWorkerError: the configuration is wrong, or the code refuses, and all goes on as it was; or no agent
            runs, or it does not come back.
        OSError: the configuration cannot be read.
    """
    settings = with_user(canonical(config), gateway_user)
    try:
        with open(settings_path, "rb") as file:
            before = file.read()
    except OSError as error:
        fix = f"a keeper that runs has it ({_START}); of one that was started by hand, give its --settings"
        raise AgentProblem(f"{settings_path}: cannot be read: {error.strerror}", fix) from None
    with contextlib.closing(_reached(settings.socket_path)) as old:
        # Who the keeper was started with: another one than the gateway's would shut that out.
        _write(replace(settings, gateway_uid=settings.gateway_uid or _gateway_uid(before)), settings_path)
        try:
            old.ask(messages.Upgrade())
        except JobWorkerError:
            # The next start is to find what the running version can read.
            _put_back(settings_path, before)
            raise
        return _upgraded(old, settings.socket_path)


def upgrade_in(socket_path: str) -> tuple[str, str]:
    """The same with the settings as they are, for the agent behind this socket."""
    with contextlib.closing(_reached(socket_path)) as old:
        old.ask(messages.Upgrade())
        return _upgraded(old, socket_path)


def _reached(socket_path: str) -> OwnerLink:
    try:
        return OwnerLink(socket_path)
    except OSError as error:
        problem = f"{socket_path}: no agent can be reached there: {error.strerror}"
        raise AgentProblem(problem, f"start it ({_START}), or be the user that it runs as") from None


def _upgraded(old: OwnerLink, socket_path: str) -> tuple[str, str]:
    """The versions before and after, once the one after is there."""
    try:
        with contextlib.closing(owner_link.next_of(old, socket_path)) as new:
            return old.version, new.version
    except OSError as error:
        problem = f"{socket_path}: the agent has not come back: {error.strerror}"
        raise AgentProblem(problem, "its log says why: journalctl -u jobworker-keeper") from None


def _gateway_uid(settings: bytes) -> int:
    """Of settings that another version has written, of which this one need not know all."""
    try:
        return int(json.loads(settings).get("gateway_uid", 0))
    except (ValueError, AttributeError, TypeError):
        return 0


def _write(settings: Settings, path: str) -> None:
    try:
        schema.write(settings, path)
    except OSError as error:
        fix = f"the keeper is started by its unit, which makes the directory: {_START}; or give another --settings"
        raise AgentProblem(f"{path}: cannot be written: {error.strerror}", fix) from None


def _put_back(path: str, content: bytes) -> None:
    beside = f"{path}.old"
    with contextlib.suppress(OSError):
        with open(beside, "wb") as file:
            file.write(content)
        os.chmod(beside, 0o640)
        os.rename(beside, path)


def with_user(settings: Settings, name: str) -> Settings:
    """The settings with this user for the gateway, if one is named. Raises InvalidField: there is no such user."""
    if not name:
        return settings
    try:
        return replace(settings, gateway_uid=pwd.getpwnam(name).pw_uid)
    except KeyError:
        problem = f"there is no user {name!r:.40}"
        raise InvalidField("gateway-user", problem, "useradd --system --no-create-home jobworker") from None

"""`worker-agent doctor`: what is wrong with this host, and with an agent's configuration on it.

The checks are made by those whose business it is, each in a process of its own as it would run: settings by
`worker-agent config canonical`, the host by the supervisor's program, certificates by the gateway's, as its user.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from jobworker import codec, root_side
from jobworker.cli import service
from jobworker.errors import JobWorkerError
from jobworker.findings import Finding, Findings, failure, warning
from jobworker.settings.schema import Settings, TlsSettings

CONFIG = "/etc/jobworker/agent.yaml"

_SURVEY = tuple(root_side.supervisor("--survey", "yes"))
_CHECK = (sys.executable, "-I", "-m", "jobworker.gateway")
_PATIENCE = 60


def findings(config: str | None, gateway_user: str) -> Iterator[Finding]:
    """Check by check.

    Args:
        config: the configuration; `None` for the one at its usual place, if there is one.
        gateway_user: who the gateway runs as; empty to leave that to `gateway_uid`.
    """
    settings, path = None, config or CONFIG
    if config is None and not os.path.exists(CONFIG):
        yield warning("settings", f"there is no {CONFIG}", "name yours with --config; this is for the defaults")
    else:
        try:
            settings = service.with_user(service.canonical(path), gateway_user)
            yield Finding("settings", f"{path} is good")
        except OSError as error:
            told = f"{path}: cannot be read: {error.strerror}"
            yield failure("settings", told, "name yours with --config, and run this as root if only root reads it")
        except JobWorkerError as error:
            yield failure("settings", str(error))
    if os.geteuid() != 0:
        yield warning("user", "this is not root", "run it as root to see what an agent of root's would find")
    yield from _asked("host", _SURVEY, settings or Settings("", "", TlsSettings("", "", "")))
    if settings and not settings.gateway_uid and os.geteuid() == 0:
        yield warning("tls", "read as root, who may read all", "give --gateway-user, as the keeper's unit does")
    if settings:
        yield from _asked("tls", (*_CHECK, "--check-as", str(settings.gateway_uid)), settings)


def _asked(check: str, command: tuple[str, ...], settings: Settings) -> tuple[Finding, ...]:
    """What a program finds that is given these settings."""
    fd = os.memfd_create("settings")
    try:
        os.write(fd, codec.dumps(settings))
        made = subprocess.run(
            [*command, "--settings", f"/proc/self/fd/{fd}"],
            pass_fds=(fd,),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_PATIENCE,
        )
        if made.returncode == 0:
            return codec.loads(Findings, made.stdout).findings
        said = made.stderr.decode(errors="replace").strip().splitlines()
        return (failure(check, said[-1] if said else f"its check ended with {made.returncode}"),)
    except (JobWorkerError, OSError, subprocess.TimeoutExpired) as error:
        return (failure(check, f"cannot be checked: {error}"),)
    finally:
        os.close(fd)

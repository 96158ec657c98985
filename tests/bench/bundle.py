"""OCI bundles for crun and runc: the host's own programs, read-only, in namespaces of their own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

from jobworker.kernel.cgroup import detect

_PIDS = 1024
_NOBODY = 65534
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib64")


class Bundles:
    """Makes bundles below one directory, which the containers see under its own name and may write."""

    def __init__(self, directory: str) -> None:
        self._shared = directory
        self._directory = os.path.join(directory, "oci")
        self._made: dict[tuple[str, ...], str] = {}
        self._numbers = itertools.count()
        self._prefix = f"jobworker-bench-{os.getpid()}-"
        os.mkdir(self._directory)

    def state_dir(self, program: str) -> str:
        return os.path.join(self._directory, f"{program}-state")

    def container_id(self) -> str:
        return f"{self._prefix}{next(self._numbers)}"

    def bundle(self, command: Sequence[str]) -> str:
        """The bundle that runs the command."""
        key = tuple(command)
        if key not in self._made:
            path = os.path.join(self._directory, f"bundle-{len(self._made)}")
            rootfs = os.path.join(path, "rootfs")
            for target in ("proc", "dev", self._shared.lstrip("/")):
                os.makedirs(os.path.join(rootfs, target))
            binds = _system(rootfs)
            with open(os.path.join(path, "config.json"), "w") as file:
                json.dump(_config(key, binds, self._shared), file)
            self._made[key] = path
        return self._made[key]

    def close(self) -> None:
        """Remove the cgroups of containers that a program has left behind."""
        found = detect.cgroup_mounts()
        for root in {*found.v1.values(), *([found.v2] if found.v2 else [])}:
            for path, names, _ in os.walk(root, topdown=False):
                for name in filter(lambda name: name.startswith(self._prefix), names):
                    with contextlib.suppress(OSError):
                        os.rmdir(os.path.join(path, name))


def _system(rootfs: str) -> list[str]:
    """Lay out the system's directories; those that have to be bound."""
    binds = []
    for name in _SYSTEM:
        host, target = f"/{name}", os.path.join(rootfs, name)
        if os.path.islink(host):
            os.symlink(os.readlink(host), target)
        elif os.path.isdir(host):
            os.mkdir(target)
            binds.append(host)
    return binds


def _config(command: tuple[str, ...], binds: list[str], shared: str) -> dict[str, Any]:
    bind = [{"destination": p, "type": "bind", "source": p, "options": ["rbind", "ro"]} for p in binds]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": _NOBODY, "gid": _NOBODY},
            "args": command,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            *bind,
            {"destination": shared, "type": "bind", "source": shared, "options": ["bind", "rw"]},
        ],
        "linux": {
            "resources": {"pids": {"limit": _PIDS}},
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
        },
    }

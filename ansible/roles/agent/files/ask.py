"""Tell what a host is and what it has of an agent, as a JSON object: ask.py TIME ROOT STATE_DIR [PATH...].

TIME is the controller's, in seconds. A Python that is too old for an agent runs this too, so that it can be said.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import platform
import re
import shutil
import sys
import time


def cgroups() -> str:
    """What the agent will call their mode."""
    with open("/proc/self/mountinfo") as file:
        points = [line.split() for line in file]
    kinds = {point[4]: point[point.index("-") + 1] for point in points}
    root = kinds.get("/sys/fs/cgroup", "")
    if root == "tmpfs" and "cgroup" in kinds.values():
        return "hybrid" if "cgroup2" in kinds.values() else "v1"
    return "v2" if root == "cgroup2" else "none"


def free(path: str) -> int:
    """MiB, where this is or will be."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize >> 20


def read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def has_library(name: str) -> bool:
    try:
        return bool(ctypes.CDLL(name))
    except OSError:
        return False


now, root, state_dir, *paths = sys.argv[1:]
current = f"{root}/current"
versions = [os.path.dirname(mark) for mark in glob.glob(f"{glob.escape(root)}/*/installed")]
python = sys.version_info[:2]
print(
    json.dumps(
        {
            "name": platform.node(),
            "machine": platform.machine(),
            "kernel": list(map(int, re.findall("[0-9]+", platform.release())[:2])),
            "python": python,
            "ahead": time.time() - float(now),
            "free": min(free(root), free(state_dir)),
            "cgroups": cgroups(),
            "systemd": os.path.isdir("/run/systemd/system"),
            "seccomp": has_library("libseccomp.so.2"),
            "openssl": bool(shutil.which("openssl")),
            "nft": os.access("/usr/sbin/nft", os.X_OK),
            "packaged": os.path.exists("/usr/lib/systemd/system/jobworker-keeper.service"),
            # Versions, each with the checksum of its archive; the one that is linked to, and the one before it.
            "installed": {
                os.path.basename(path): read(f"{path}/installed") for path in versions if not os.path.islink(path)
            },
            "current": os.readlink(current) if os.path.islink(current) else "",
            "current_is_for_it": os.path.isdir(f"{current}/venv/lib/python{python[0]}.{python[1]}"),
            "previous": read(f"{root}/previous"),
            "there": list(filter(os.path.lexists, paths)),
        }
    )
)

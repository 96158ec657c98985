"""What a job may leave behind, and shall not: cgroups, processes, descriptors, files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from jobworker.kernel.cgroup import detect


def all_cgroups() -> Iterator[str]:
    """Every cgroup directory, in any hierarchy."""
    found = detect.cgroup_mounts()
    for root in {*found.v1.values(), *([found.v2] if found.v2 else [])}:
        for path, _, _ in os.walk(root):
            yield path


def cgroups(name: str) -> list[str]:
    """Every cgroup directory of this name."""
    return [path for path in all_cgroups() if os.path.basename(path) == name]


def processes_of(uid: int | range) -> list[int]:
    """Every process, zombies included, that runs as this user, or as one of these."""
    uids = range(uid, uid + 1) if isinstance(uid, int) else uid
    pids = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}").st_uid in uids:
                    pids.append(int(name))
            except FileNotFoundError:
                continue
    return pids


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def zombies_of(pid: int) -> int:
    """How many children of this process have ended and were not waited for."""
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{name}/stat") as file:
            # Behind the name, in which there may be anything.
            state, parent = file.read().rpartition(")")[2].split()[:2]
            count += state == "Z" and int(parent) == pid
    return count


def processes_with(text: str) -> list[int]:
    """The processes whose command line holds this."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if text.encode() in file.read():
                    found.append(int(name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found

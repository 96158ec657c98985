"""Which disk a path is on, as far as the IO controllers are concerned: a whole disk, not a partition of one.

Source: Documentation/admin-guide/cgroup-v2.rst (io.max), sysfs(5), proc_pid_mountinfo(5), proc_pid_fdinfo(5).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

# Layers of overlay file systems; the kernel itself stacks two.
_MAX_LAYERS = 4
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Disk:
    """Attributes: `number` is `MAJOR:MINOR`; `name` is what the kernel calls it, e.g. `vda`."""

    number: str
    name: str


class NoDisk(Exception):
    """There is none; the message says why, for the user."""


def of_path(path: str) -> Disk:
    """The disk that a file or directory is on.

    Raises:
        NoDisk: it is on none, or none that can be found.
        OSError: there is no such path.
    """
    return _of_layer(path, _MAX_LAYERS)


def of_open(fd: int, path: str) -> Disk:
    """Likewise of one that is open, if only as a path (`O_PATH`).

    Raises:
        NoDisk, OSError: see `of_path`.
    """
    return _of_open(fd, path, _MAX_LAYERS)


def _of_layer(path: str, layers: int) -> Disk:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return _of_open(fd, path, layers)
    finally:
        os.close(fd)


def _of_open(fd: int, path: str, layers: int) -> Disk:
    device = os.fstat(fd).st_dev
    if os.major(device):
        return _whole(device)
    mount = _mount_of(fd, path)
    if mount.source.startswith("/dev/"):
        # Such as btrfs, which gives each subvolume a number of its own, that of no device.
        return _whole(os.stat(mount.source).st_rdev)
    if mount.kind != "overlay":
        raise NoDisk(f"{path} is on {mount.kind}, which has no disk")
    if layers == 1:
        raise NoDisk(f"{path} is below too many layers of overlay")
    return _of_layer(mount.upper, layers - 1)


def _whole(device: int) -> Disk:
    """The disk where the device is a partition of it; a logical volume or an array is limited as what it is."""
    try:
        directory = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}", strict=True)
    except OSError:
        raise NoDisk(f"the kernel does not show device {os.major(device)}:{os.minor(device)} in /sys") from None
    if os.path.exists(f"{directory}/partition"):
        directory = os.path.dirname(directory)
    with open(f"{directory}/dev", encoding="ascii") as file:
        return Disk(file.read().strip(), os.path.basename(directory))


@dataclass(frozen=True, slots=True)
class _Mount:
    kind: str
    source: str
    upper: str


def _mount_of(fd: int, path: str) -> _Mount:
    mount_id = _mount_id(fd)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.rstrip("\n").partition(" - ")
            if before.split(" ")[0] == mount_id:
                kind, source, options = after.split(" ", 2)
                found = dict(option.partition("=")[::2] for option in options.split(","))
                return _Mount(kind, _unescaped(source), _unescaped(found.get("upperdir", "")))
    raise NoDisk(f"{path} is on a file system that is not mounted here")


def _mount_id(fd: int) -> str:
    # Not by the number of its device: some file systems tell another one of their files than of their mount.
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next(line.split()[1] for line in file if line.startswith("mnt_id:"))


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)

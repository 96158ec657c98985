"""Which disk a path is on, as far as the IO controllers are concerned: a whole disk, not a partition of one.

Source: Documentation/admin-guide/cgroup-v2.rst (io.max, Writeback), sysfs(5), proc_pid_mountinfo(5),
proc_pid_fdinfo(5).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

# Layers of overlay file systems; the kernel itself stacks two.
_MAX_LAYERS = 4
# Where the kernel does not know whose they are.
LATE_WRITES = "direct and synchronous writes are held back, not those that the kernel makes later"
# Those that tell whose a write is that the kernel makes later, with cgroup v2; ext4 is what mounts ext3.
_TELLING = frozenset({"ext2", "ext3", "ext4", "btrfs", "f2fs", "xfs"})
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk, as the path was on it that it was looked up for.

    Attributes:
        number: `MAJOR:MINOR`.
        name: what the kernel calls it, e.g. `vda`.
        late_writes: why writes that the kernel makes later are not held back there; empty if they can be.
    """

    number: str
    name: str
    late_writes: str = ""


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
    device, mount = os.fstat(fd).st_dev, _mount_of(fd)
    if os.major(device):
        return _whole(device, _late_writes(mount))
    if mount is None:
        raise NoDisk(f"{path} is on a file system that is not mounted here")
    if mount.source.startswith("/dev/"):
        # Such as btrfs, which gives each subvolume a number of its own, that of no device.
        return _whole(os.stat(mount.source).st_rdev, _late_writes(mount))
    if mount.kind != "overlay":
        raise NoDisk(f"{path} is on {mount.kind}, which has no disk")
    if layers == 1:
        raise NoDisk(f"{path} is below too many layers of overlay")
    return _of_layer(mount.upper, layers - 1)


def _whole(device: int, late_writes: str) -> Disk:
    """The disk where the device is a partition of it; a logical volume or an array is limited as what it is."""
    try:
        directory = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}", strict=True)
    except OSError:
        raise NoDisk(f"the kernel does not show device {os.major(device)}:{os.minor(device)} in /sys") from None
    if os.path.exists(f"{directory}/partition"):
        directory = os.path.dirname(directory)
    with open(f"{directory}/dev", encoding="ascii") as file:
        return Disk(file.read().strip(), os.path.basename(directory), late_writes)


@dataclass(frozen=True, slots=True)
class _Mount:
    kind: str
    source: str
    upper: str
    journals_data: bool


def _late_writes(mount: _Mount | None) -> str:
    if mount is None:
        told = "a file system that is not mounted here"
    elif mount.journals_data:
        # ext4 does not tell then (fs/ext4/super.c: SB_I_CGROUPWB).
        told = f"{mount.kind} (data=journal)"
    elif mount.kind not in _TELLING:
        told = mount.kind
    else:
        return ""
    return f"with {told} {LATE_WRITES}"


def _mount_of(fd: int) -> _Mount | None:
    """What is told of the mount that a file is in; None of one that is at no place here."""
    mount_id = _mount_id(fd)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.rstrip("\n").partition(" - ")
            if before.split(" ")[0] == mount_id:
                kind, source, options = after.split(" ", 2)
                found = dict(option.partition("=")[::2] for option in options.split(","))
                upper = _unescaped(found.get("upperdir", ""))
                return _Mount(kind, _unescaped(source), upper, found.get("data") == "journal")
    return None


def _mount_id(fd: int) -> str:
    # Not by the number of its device: some file systems tell another one of their files than of their mount.
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next(line.split()[1] for line in file if line.startswith("mnt_id:"))


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)

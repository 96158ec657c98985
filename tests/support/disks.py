"""Disks, partitions and swap that a test makes, as small as it needs them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.root_side import RootSide, root_side
from support.waiting import until


@contextmanager
def on_disk(directory: Path, options: str, *, place: str = "state", **agent: Any) -> Iterator[RootSide]:
    """An agent of whose directories one is a small file system of its own.

    Args:
        directory: where the agent keeps everything.
        options: of the tmpfs that is mounted.
        place: which one, below that.
        agent: options of RootSide.
    """
    mounted = directory / place
    mounted.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "jobworker-test", mounted], check=True)
    try:
        with root_side(str(directory), **agent) as side:
            yield side
    finally:
        unmount(mounted)


def unmount(place: Path) -> None:
    """Unmount what is mounted there."""
    # Lazily: who removes or flushes files may be at it a moment longer than the agent is there.
    subprocess.run(["umount", "--lazy", place], check=True)


_SECTORS = 65_536
_SECTOR_BYTES = 512
# Behind where a table of partitions would be.
_FIRST = 2048


@contextmanager
def partition(directory: Path) -> Iterator[tuple[Path, str]]:
    """A file system on a partition of a disk of its own; the test is skipped where there can be none.

    Args:
        directory: for the file that is the disk, and for the place where the partition is mounted.

    Yields:
        where it is mounted, and the kernel's name of the whole disk.
    """
    image, place = directory / "disk", directory / "partition"
    place.mkdir()
    with ExitStack() as undo:
        os.truncate(_made(image), _SECTORS * _SECTOR_BYTES)
        # The kernel need not know any table of partitions: it is told of this one.
        device = _try("losetup", "--find", "--show", "--partscan", image)
        undo.callback(_do, "losetup", "--detach", device)
        _try("addpart", device, "1", str(_FIRST), str(_SECTORS - _FIRST))
        # What has ended of a job's may have it mounted a moment longer; and udev may have removed it already.
        undo.callback(until, partial(_without_partition, device), True)
        _try("mkfs.ext4", "-q", f"{device}p1")
        _try("mount", f"{device}p1", place)
        undo.callback(_do, "umount", place)
        yield place, os.path.basename(device)


@contextmanager
def swap(directory: Path, size: int) -> Iterator[None]:
    """So many bytes of swap more in the host; the test is skipped where there can be none."""
    file = directory / "swap"
    _made(file).chmod(0o600)
    with open(file, "r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, size)
    _try("mkswap", file)
    _try("swapon", file)
    try:
        yield
    finally:
        _do("swapoff", file)


def _without_partition(device: str) -> bool:
    subprocess.run(["delpart", device, "1"], check=False, capture_output=True)
    return not os.path.exists(f"/sys/class/block/{os.path.basename(device)}p1")


def _made(file: Path) -> Path:
    file.touch()
    return file


def _do(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _try(*command: str | Path) -> str:
    """What it says; the test is skipped if it fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{command[0]}: {error.stderr}")

"""Disks of an agent's own, as small as a test needs them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.root_side import RootSide, root_side


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

"""Disks of an agent's own, as small as a test needs them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from support.root_side import RootSide


@contextmanager
def on_disk(directory: Path, options: str, **jobs: Any) -> Iterator[RootSide]:
    """An agent whose state directory is a small file system of its own.

    Args:
        directory: where the agent keeps everything else.
        options: of the tmpfs that is mounted.
        jobs: settings.
    """
    state = directory / "state"
    state.mkdir()
    with ExitStack() as undo:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "jobworker-test", state], check=True)
        # Lazily: who removes or flushes files may be at it a moment longer than the agent is there.
        undo.callback(lambda: subprocess.run(["umount", "--lazy", state], check=True))
        side = RootSide(str(directory), **jobs)
        undo.callback(side.close)
        yield side

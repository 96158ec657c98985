"""What a job waits for until a test lets it go on."""

from __future__ import annotations

import os

from support.root_side import RootSide


def gate(side: RootSide, name: int | str) -> str:
    """The path of a FIFO that a job can read from; nobody has opened it yet."""
    path = _path(side, name)
    os.mkfifo(path)
    os.chmod(path, 0o666)  # noqa: S103
    return path


def open_gate(side: RootSide, name: int | str) -> None:
    """Wait until the job is there to read, and let it go on."""
    os.close(os.open(_path(side, name), os.O_WRONLY))


def _path(side: RootSide, name: int | str) -> str:
    return os.path.join(os.path.dirname(side.state_dir), f"gate-{name}")

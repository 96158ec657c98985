"""Whom the kernel kills first when memory is short: proc_pid_oom_score_adj(5)."""

from __future__ import annotations

import contextlib
import os


def reset_score() -> None:
    """Be like any other process.

    The agent protects itself from the OOM killer; its jobs and helpers are not to inherit that. What a service
    manager has raised for an ordinary user, that user may not lower, and they keep it.
    """
    with contextlib.suppress(PermissionError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)

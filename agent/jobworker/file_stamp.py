"""How a file looks from outside, to see whether it has changed: a stat, which no kind of replacement escapes."""

from __future__ import annotations

import os

Stamp = tuple[int, ...]


def of(path: str) -> Stamp:
    """The stamp of a file as it is now; empty if there is none that could be looked at."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ()
    # The time of the last change of the inode, too: the other one can be set, and a mode does not change it.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

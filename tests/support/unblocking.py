"""Programs whose standard output does not block."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Sequence
from typing import Any

from support.waiting import until


def output_read_late(command: Sequence[Any]) -> tuple[int, bytes]:
    """A program's exit code, and what it writes to a pipe that nobody reads before it is full."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(reading, "rb") as pipe, open(writing, "wb") as far, subprocess.Popen(command, stdout=far) as process:
        until(lambda: select.select([], [far], [], 0)[1], [])
        far.close()
        written = pipe.read()
    return process.returncode, written

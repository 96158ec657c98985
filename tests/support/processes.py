"""Programs that a test has run beside it, and that do not outlive it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from support.signals import interruptible


@contextlib.contextmanager
def running(command: Sequence[Any], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is killed in the end, if it has not ended by then.

    Args:
        command: its name and arguments.
        options: of Popen.
    """
    with interruptible():
        # Unbuffered, for `communicate` knows nothing of what `readline` has read ahead.
        process = subprocess.Popen(command, bufsize=0, **options)
    with process:
        try:
            yield process
        finally:
            process.kill()

"""The jobs of the campaign: a program of its own, run as `jobs.py KIND SEED RECORD`.

All that a job writes follows from its kind and seed. It appends a line to RECORD once it has written it all:
the number of bytes, their SHA-256 in hex, and the exit code that it is about to end with.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time

# Bytes a write, writes, seconds between them.
SHAPES = {
    "flood": (65_536, 64, 0.0),
    "trickle": (40, 60, 0.02),
    "short": (100, 1, 0.0),
    "silent": (0, 0, 0.0),
    "forking": (500, 40, 0.02),
}


def content(kind: str, seed: int) -> bytes:
    """All that the job writes: arbitrary bytes."""
    size, count, _ = SHAPES[kind]
    return random.Random(seed).randbytes(size * count)  # noqa: S311 - to be repeated


def exit_code(seed: int) -> int:
    return seed % 200


def line(kind: str, seed: int) -> str:
    """What the job records."""
    data = content(kind, seed)
    return f"{len(data)} {hashlib.sha256(data).hexdigest()} {exit_code(seed)}\n"


def _write(data: bytes, size: int, pause: float) -> None:
    for start in range(0, len(data), size or 1):
        rest = data[start : start + size]
        while rest:
            rest = rest[os.write(1, rest) :]
        time.sleep(pause)


def main(kind: str, seed: int, record: str) -> int:
    """Write, the first half by a descendant where the kind is `forking`; then record it."""
    data = content(kind, seed)
    size, _, pause = SHAPES[kind]
    if kind == "forking":
        half = len(data) // 2
        child = os.fork()
        if not child:
            _write(data[:half], size, pause)
            os._exit(0)
        os.waitpid(child, 0)
        data = data[half:]
    _write(data, size, pause)
    fd = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line(kind, seed).encode())
    return exit_code(seed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))

"""The jobs of the campaign: a program of its own, run as `jobs.py KIND SEED RECORD [RELEASE]`.

All that a job writes follows from its kind and seed; of a standing one, from the number of bytes that it
recorded too. It appends a line to RECORD once it has written it all: the number of bytes, their SHA-256 in hex,
and the exit code that it is about to end with. A standing job writes a block a second until the FIFO named RELEASE
has no writer.
"""

from __future__ import annotations

import hashlib
import os
import random
import select
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
# Bytes a second, in blocks whose concatenation is what the generator gives at once: a multiple of four.
STANDING_BLOCK = 40


def content(kind: str, seed: int) -> bytes:
    """All that the job writes: arbitrary bytes."""
    size, count, _ = SHAPES[kind]
    return random.Random(seed).randbytes(size * count)  # noqa: S311 - to be repeated


def exit_code(seed: int) -> int:
    return seed % 200


def line(data: bytes, seed: int) -> str:
    """What a job records that wrote `data`."""
    return f"{len(data)} {hashlib.sha256(data).hexdigest()} {exit_code(seed)}\n"


def _write(data: bytes, size: int, pause: float) -> None:
    for start in range(0, len(data), size or 1):
        rest = data[start : start + size]
        while rest:
            rest = rest[os.write(1, rest) :]
        time.sleep(pause)


def standing_content(size: int, seed: int) -> bytes:
    """The first `size` bytes of a standing job."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - to be repeated


def _stand(seed: int, release: str) -> bytes:
    source, data = random.Random(seed), bytearray()  # noqa: S311 - to be repeated
    fifo = os.open(release, os.O_RDONLY)
    while not select.select([fifo], [], [], 1.0)[0]:
        block = source.randbytes(STANDING_BLOCK)
        _write(block, STANDING_BLOCK, 0.0)
        data += block
    return bytes(data)


def _shaped(kind: str, seed: int) -> bytes:
    """Write all, the first half by a descendant where the kind is `forking`."""
    data = whole = content(kind, seed)
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
    return whole


def main(kind: str, seed: int, record: str, release: str = "") -> int:
    """Write, then record what was written."""
    data = _stand(seed, release) if release else _shaped(kind, seed)
    fd = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line(data, seed).encode())
    return exit_code(seed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))

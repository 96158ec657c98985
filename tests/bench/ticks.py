"""`python ticks.py PERIOD`: lines that tell when they were written, one each PERIOD seconds; by a job too."""

from __future__ import annotations

import os
import re
import sys
import time

_TICK = re.compile(rb"@(\d+) ")


def tick() -> bytes:
    """A line with nanoseconds of the monotonic clock, of some 500 bytes."""
    return b"@%d %s\n" % (time.monotonic_ns(), b"." * 480)


def times(data: bytes) -> list[int]:
    """When the lines were written that begin in these bytes."""
    return [int(found) for found in _TICK.findall(data)]


def main(period: float) -> None:
    due = time.monotonic()
    while True:
        due += period
        time.sleep(max(0, due - time.monotonic()))
        os.write(1, tick())


if __name__ == "__main__":
    main(float(sys.argv[1]))

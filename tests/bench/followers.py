"""Followers of output, each a process of its own, and what a round of all of them takes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench.processes import cpu_seconds
from bench.scale import MIB
from support import certs
from support.agent import DEADLINE


@dataclass(slots=True)
class Follower:
    """A client process with a connection that is up."""

    process: subprocess.Popen[str]

    def send(self, request: bytes, *, compress: bool) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{request.hex()}{' gzip' if compress else ''}\n")
        self.process.stdin.flush()

    def receive(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()


@dataclass(frozen=True, slots=True)
class Served:
    """What one round took."""

    mib_per_second: float
    cpu_seconds_per_gib: float


@contextlib.contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A module of this folder in a process that ends when its standard input does."""
    command = [sys.executable, "-m", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.communicate(timeout=DEADLINE)


@contextlib.contextmanager
def followers(count: int, addr: str, method: str, files: certs.Files) -> Iterator[list[Follower]]:
    """So many, whose connections are up."""
    arguments = ("bench.stream_client", addr, method, files.ca, files.cert, files.key)
    with contextlib.ExitStack() as stack:
        made = [Follower(stack.enter_context(child(*arguments))) for _ in range(count)]
        for follower in made:
            follower.receive()
        yield made


def take(server: int, by: list[Follower], request: bytes, size: int, *, compress: bool = False) -> Served:
    """Have each of these followers take an answer that stands for so many bytes of output, all at once.

    Raises:
        RuntimeError: one got less.
    """
    cpu, begin = cpu_seconds(server), time.perf_counter()
    for follower in by:
        follower.send(request, compress=compress)
    received = [int(follower.receive()) for follower in by]
    seconds, cpu = time.perf_counter() - begin, cpu_seconds(server) - cpu
    if min(received) < size:
        raise RuntimeError(f"a follower got {min(received)} of {size} bytes")
    mib = size * len(by) / MIB
    return Served(mib / seconds, cpu / mib * 1024)

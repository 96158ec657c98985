"""A hostile client in a process of its own: floods an agent until its input ends, and tells how it went."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from support import certs

_DEADLINE = 60


class Flood:
    """A running flood.

    Attributes:
        counts: how many handshakes ended with which status; once it has been stopped.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.counts: dict[str, int] = {}

    def stop(self) -> None:
        said, _ = self._process.communicate(timeout=_DEADLINE)
        self.counts = json.loads(said)


@contextlib.contextmanager
def flooding(module: str, *arguments: object) -> Iterator[Flood]:
    """A module that floods in a process of its own, from when it says that it has begun.

    Args:
        module: its name; it ends with its standard input, and prints its counts.
        arguments: for it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(__file__))},
    )
    assert process.stdout
    running = Flood(process)
    try:
        assert process.stdout.readline() == b"begun\n"
        yield running
    finally:
        running.stop()


def flood(
    address: str, files: certs.Files, *, connections: int, silent: int
) -> contextlib.AbstractContextManager[Flood]:
    """Flood an address with handshakes; begins when the first has succeeded.

    Args:
        address: HOST:PORT.
        files: who it is.
        connections: so many at a time shake hands.
        silent: so many others are open meanwhile, on which nothing is said.
    """
    return flooding("support.flood", address, files.ca, files.cert, files.key, connections, silent)


def _handshakes(address: str, files: certs.Files, connections: int) -> Counter[str]:
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])
    counts: Counter[str] = Counter()
    over = Event()

    def shake() -> None:
        try:
            with (
                socket.create_connection((host, int(port)), _DEADLINE) as plain,
                context.wrap_socket(plain, server_hostname=host),
            ):
                counts["OK"] += 1
        except OSError as error:
            counts[type(error).__name__] += 1

    def shake_all_the_time() -> None:
        while not over.is_set():
            shake()

    shake()
    print("begun", flush=True)
    with ThreadPoolExecutor(connections) as threads:
        for _ in range(connections):
            threads.submit(shake_all_the_time)
        sys.stdin.read()
        over.set()
    return counts


def _main() -> None:
    address, ca, cert, key, connections, silent = sys.argv[1:]
    host, _, port = address.rpartition(":")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.ExitStack() as held:
        for _ in range(int(silent)):
            held.enter_context(socket.create_connection((host, int(port)), _DEADLINE))
        print(json.dumps(_handshakes(address, certs.Files(ca, cert, key), int(connections))))


if __name__ == "__main__":
    _main()

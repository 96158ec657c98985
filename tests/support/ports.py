"""Addresses of this host that nobody else uses, as long as a test does."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator

# Below those that the kernel hands out (ip_local_port_range), and not those of another process of this test run.
_PORTS = itertools.count(20_000 + os.getpid() % 100 * 100)


def own_address() -> str:
    """An address to listen at, also again and again; nobody listens there yet."""
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return f"127.0.0.1:{port}"


@contextlib.contextmanager
def closed_address() -> Iterator[str]:
    """An address that nobody listens at, nor can by chance."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"

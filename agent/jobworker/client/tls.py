"""What the client knows of TLS: its credentials, and why a connection cannot be had.

grpc says "Socket closed" whatever went wrong in a handshake. `preflight` finds the causes that lie in the
client's own files, `diagnose` those that lie with the server too. Both need libraries that take longer to
import than a whole `worker-client --help` should, so they are imported when they are needed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jobworker import file_stamp, tls13
from jobworker.client import pem
from jobworker.client.endpoint import Endpoint
from jobworker.errors import TlsProblem

if TYPE_CHECKING:
    import grpc


def credentials(endpoint: Endpoint) -> grpc.ChannelCredentials:
    """Credentials for mutual TLS 1.3, for `grpc.secure_channel` and `grpc.aio.secure_channel` alike.

    Raises:
        TlsProblem: a file was not given or cannot be read.
        RuntimeError: grpc was imported before it was told to speak TLS 1.3 only.
    """
    tls13.require()
    import grpc  # noqa: PLC0415 - only after `require`

    return grpc.ssl_channel_credentials(pem.read_ca(endpoint), pem.read_key(endpoint), pem.read_cert(endpoint))


def stamps(endpoint: Endpoint) -> tuple[file_stamp.Stamp, ...]:
    """How the client's files look from outside."""
    paths = (endpoint.ca, endpoint.cert, endpoint.key)
    # A pipe can be read once only.
    return tuple(file_stamp.of(path) if os.path.isfile(path) else () for path in paths)


def preflight(endpoint: Endpoint) -> None:
    """Check all that can be checked without the server.

    Raises:
        TlsProblem: with these files no agent will let the client in.
    """
    from jobworker.client import tls_files  # noqa: PLC0415 - cryptography takes 70 ms to import

    tls_files.check(endpoint)


def diagnose(endpoint: Endpoint, seconds: float = 5.0) -> TlsProblem | None:
    """Find out why a connection failed, by trying once more and looking closely.

    Args:
        endpoint: as it was used.
        seconds: how long to wait for the server, in all; if that is nothing, only the files are looked at.

    Returns:
        The cause, or None if from here everything about the connection looks right.
    """
    from jobworker.client import tls_probe  # noqa: PLC0415 - cryptography and ssl take 100 ms to import

    try:
        preflight(endpoint)
        if seconds > 0:
            tls_probe.probe(endpoint, seconds)
    except TlsProblem as problem:
        return problem
    return None

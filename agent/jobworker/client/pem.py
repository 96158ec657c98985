"""The client's three PEM files, as bytes."""

from __future__ import annotations

from jobworker.client.endpoint import Endpoint
from jobworker.errors import TlsProblem

# No bundle of certificates comes near this.
_MAX_BYTES = 4 * 1024 * 1024


def read_ca(endpoint: Endpoint) -> bytes:
    """The CA bundle. Raises TlsProblem if it was not given or cannot be read, as the other two do."""
    return _read(endpoint.ca, "CA certificate", "--ca")


def read_cert(endpoint: Endpoint) -> bytes:
    return _read(endpoint.cert, "client certificate", "--cert")


def read_key(endpoint: Endpoint) -> bytes:
    return _read(endpoint.key, "private key", "--key")


def _read(path: str, what: str, option: str) -> bytes:
    if not path:
        raise TlsProblem(f"no {what} is given", f"name its file with {option}")
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        problem = f"the {what} {path} cannot be read: {error.strerror}"
        raise TlsProblem(problem, f"check the path given with {option}, and the file's mode") from None

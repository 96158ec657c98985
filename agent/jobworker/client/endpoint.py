"""Where an agent is, and what to prove oneself with."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jobworker.errors import InvalidField

ADDR_EXAMPLE = "agent.example.org:7443"

# No scheme, no path: what follows is handed to grpc.
_ADDR = re.compile(r"(?P<host>[A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})")
_MAX_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One agent, and the files for mutual TLS with it.

    Attributes:
        addr: HOST:PORT; an IPv6 address stands in brackets.
        ca: file with the CA certificates that the agent's certificate is checked against, PEM.
        cert: file with the client's certificate (and intermediates), PEM.
        key: file with the private key of that certificate, PEM.
        server_name: the name that the agent's certificate must have; empty for the host of `addr`.
    """

    addr: str
    ca: str
    cert: str
    key: str
    server_name: str = ""

    @property
    def host(self) -> str:
        """The host of `addr`, an IPv6 address without its brackets."""
        return self.addr.rpartition(":")[0].strip("[]")

    @property
    def target(self) -> str:
        """The address as grpc takes it."""
        # Without its scheme a host that is called `unix`, or `dns`, would be one.
        return f"dns:///{self.addr}"

    @property
    def port(self) -> int:
        return int(self.addr.rpartition(":")[2])


def check_addr(text: str, field: str = "addr") -> str:
    """Return `text` if it is HOST:PORT.

    Raises:
        InvalidField: it is not.
    """
    match = _ADDR.fullmatch(text)
    if not match or not 0 < int(match["port"]) <= _MAX_PORT:
        raise InvalidField(field, f"{text!r:.300} is not HOST:PORT", ADDR_EXAMPLE)
    return text

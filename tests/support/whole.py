"""Keeper, supervisor and gateway as processes that a test can kill one by one, at one port for all of it."""

from __future__ import annotations

import socket
from dataclasses import replace

from jobworker.client import Endpoint
from support import certs, gateway
from support.link import DEADLINE, Link
from support.root_side import RootSide


class Whole:
    """Keeper, supervisor and gateway; the gateway is at one port in all its lives."""

    def __init__(self, directory: str, side: RootSide) -> None:
        self.side = side
        with socket.create_server(("127.0.0.1", 0)) as free:
            listen = f"127.0.0.1:{free.getsockname()[1]}"
        self._directory, self._settings = directory, replace(gateway.behind(side.settings), listen=listen)
        self.gateway = gateway.Gateway(directory, self._settings)

    def kill_gateway(self) -> None:
        self.gateway.process.kill()
        self.gateway.process.wait(DEADLINE)
        self.gateway = gateway.Gateway(self._directory, self._settings)

    def kill_supervisor(self, link: Link) -> Link:
        return self.side.kill_supervisor(link, subscribe=False)

    def endpoint(self, name: str = "writer") -> Endpoint:
        """To reach the gateway as a user of the development PKI."""
        files = certs.dev_pki().files(name)
        return Endpoint(self.gateway.address, files.ca, files.cert, files.key)

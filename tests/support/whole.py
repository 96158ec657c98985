"""Keeper, supervisor and gateway as processes that a test can kill one by one, at one port for all of it."""

from __future__ import annotations

from dataclasses import replace

from jobworker.client import Endpoint
from support import certs, gateway
from support.link import DEADLINE, Link
from support.ports import own_address
from support.root_side import RootSide


class Whole:
    """Keeper, supervisor and gateway; the gateway is at one port in all its lives."""

    def __init__(self, directory: str, side: RootSide) -> None:
        self.side = side
        self._directory, self._settings = directory, replace(gateway.behind(side.settings), listen=own_address())
        self.gateway = self._started()

    def _started(self) -> gateway.Gateway:
        started = gateway.Gateway(self._directory, self._settings)
        assert started.address, started.log()
        return started

    def kill_gateway(self) -> None:
        self.gateway.process.kill()
        self.gateway.process.wait(DEADLINE)
        self.gateway = self._started()

    def kill_supervisor(self, link: Link) -> Link:
        return self.side.kill_supervisor(link, subscribe=False)

    def endpoint(self, name: str = "writer") -> Endpoint:
        """To reach the gateway as a user of the development PKI."""
        files = certs.dev_pki().files(name)
        return Endpoint(self.gateway.address, files.ca, files.cert, files.key)

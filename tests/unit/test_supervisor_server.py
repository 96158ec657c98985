"""The supervisor's socket across a fork."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.server import Server


@pytest.mark.usefixtures("one_life")
def test_a_forked_helper_keeps_no_peer_from_seeing_the_end(tmp_path: Path) -> None:
    loop, path = Loop(), str(tmp_path / "socket")
    connected: Any = SimpleNamespace(connected=lambda _uid: loop.stop())

    def bind() -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        listener.bind(path)
        listener.listen()
        return listener

    nobody: Any = None
    server = Server(loop, Log("error"), connected, nobody, nobody, nobody, bind, os.geteuid(), patient=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(30)
        peer.connect(path)
        loop.run()
        over, until = os.pipe()
        forked, ready = os.pipe()
        if (child := os.fork()) == 0:
            os.close(until)
            os.write(ready, b"x")
            os.read(over, 1)
            os._exit(0)
        # What is done after a fork has been done.
        assert os.read(forked, 1) == b"x"
        # As the kernel does when this process ends, or executes another program.
        server._leave()
        assert peer.recv(1) == b""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other, pytest.raises(ConnectionRefusedError):
            other.connect(path)
        os.close(until)
        assert os.waitpid(child, 0)[1] == 0
        for fd in (over, forked, ready):
            os.close(fd)

"""What a supervisor takes from a keeper that dies."""

from __future__ import annotations

import os
import socket

import pytest

from jobworker.supervisor.keeper_link import End, KeeperLink
from jobworker.supervisor.loop import Loop
from jobworker.wire import keeping, sockets

ID = "k7f3-9m2q-x4tz-b1cd"
END = (os.CLD_EXITED, 3)


@pytest.mark.usefixtures("one_life")
def test_it_hears_what_a_keeper_said_that_had_not_read_everything() -> None:
    keeper, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = KeeperLink(theirs.detach())
    link.ready()
    sockets.send(keeper, keeping.pack(keeping.ENDED, ID, END))
    keeper.close()
    loop, heard = Loop(), list[tuple[str, End]]()
    link.listen(loop, lambda job_id, end: heard.append((job_id, end)), loop.stop)
    loop.run()
    # It lives as long as its process.
    link._link.close()
    assert heard == [(ID, END)]

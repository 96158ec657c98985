"""The supervisor's socket: only what the table permits, and nothing that a peer says breaks it."""

from __future__ import annotations

import json
import os
import random
import socket

import pytest

from jobworker.errors import JobWorkerError, ProtocolError
from jobworker.supervisor.requests import _TABLE
from jobworker.wire import frames, messages, sockets
from support.link import CALLER, Link
from support.root_side import RootSide
from support.trails import events
from support.waiting import until

pytestmark = pytest.mark.root


def test_every_request_has_a_handler_and_nothing_else_has() -> None:
    assert set(_TABLE) == set(messages.REQUESTS)


def alive(side: RootSide) -> bool:
    link = side.link()
    link.close()
    return bool(link.welcome.protocol == messages.PROTOCOL)


HOSTILE = {
    "empty object": b"{}",
    "not json": b"\xff\x00garbage",
    "no body": b'{"type":"InspectJob","seq":1}',
    "unknown type": b'{"type":"Reboot","seq":1,"body":{}}',
    "an answer": b'{"type":"Done","seq":1,"body":{}}',
    "an event": b'{"type":"Synced","seq":0,"body":{}}',
    "unknown field": b'{"type":"InspectJob","seq":1,"body":{"job_id":"x","root":true}}',
    "wrong type": b'{"type":"InspectJob","seq":1,"body":{"job_id":7}}',
    "huge number": b'{"type":"OpenLog","seq":1,"body":{"job_id":"x","segment":1' + b"0" * 5000 + b"}}",
    "deep": b'{"type":"InspectJob","seq":1,"body":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "extra key": b'{"type":"Shutdown","seq":1,"body":{},"uid":0}',
    "bool as seq": b'{"type":"Shutdown","seq":true,"body":{}}',
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_malformed_frame_ends_its_connection_alone(side: RootSide, link: Link, data: bytes) -> None:
    bad = side.link()
    sockets.send(bad.sock, data)
    with pytest.raises(ConnectionResetError):
        bad.receive()
    assert alive(side)
    assert link.ask(messages.Hello(messages.PROTOCOL, subscribe=False))


def test_a_frame_that_is_too_large_is_refused(side: RootSide) -> None:
    bad = side.link()
    bad.sock.setsockopt(socket.SOL_SOCKET, 32, 4 * frames.MAX_FRAME)  # SO_SNDBUFFORCE
    sockets.send(bad.sock, b" " * (frames.MAX_FRAME + 1))
    with pytest.raises(ConnectionResetError):
        bad.receive()
    assert alive(side)


def test_descriptors_that_come_with_a_frame_are_closed(side: RootSide, link: Link) -> None:
    before = side.open_files(link)
    bad = side.link()
    nulls = tuple(os.open("/dev/null", os.O_RDONLY) for _ in range(50))
    refused = []
    try:
        for count in (1, 3, 50):
            sockets.send(bad.sock, frames.encode(messages.InspectJob("0000-0000-0000-0000"), count), nulls[:count])
    except PermissionError as error:
        # The kernel lets none through (Linux 6.16).
        refused.append(error)
    for fd in nulls:
        os.close(fd)
    if not refused:
        with pytest.raises((JobWorkerError, ConnectionResetError)):
            bad.answer(1)
    bad.close()
    # Connections of other tests may be closed meanwhile.
    side.wait_for(lambda: side.open_files(link) <= before)


def test_nothing_is_answered_before_hello(side: RootSide) -> None:
    sock = sockets.connect(side.settings.socket_path)
    sock.setblocking(True)
    sockets.send(sock, frames.encode(messages.InspectJob("0000-0000-0000-0000"), 1))
    frame = frames.receive(sock, messages.ANSWERS)
    assert frame
    with pytest.raises(ProtocolError, match="before Hello"):
        raise frames.to_error(frame.message)
    sock.close()


def test_another_version_is_told_so(link: Link) -> None:
    with pytest.raises(ProtocolError, match="version 999 is spoken"):
        link.ask(messages.Hello(999, subscribe=False))


def test_another_user_is_not_let_in(side: RootSide) -> None:
    """Even where the socket's mode would let it."""
    os.chmod(side.settings.socket_path, 0o666)  # noqa: S103
    for path in (side.state_dir, os.path.dirname(side.state_dir)):
        os.chmod(path, 0o755)  # noqa: S103
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setresuid(65534, 65534, 65534)
            sock = sockets.connect(side.settings.socket_path)
            sock.setblocking(True)
            sockets.send(sock, frames.encode(messages.Hello(messages.PROTOCOL, subscribe=False), 1))
            status = 0 if frames.receive(sock, messages.ANSWERS) is None else 2
        except (ConnectionResetError, BrokenPipeError):
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.chmod(side.settings.socket_path, 0o600)
    assert "connection refused" in side.log()


def test_mutated_frames(side: RootSide) -> None:
    """A bounded run of random damage to real frames; the seed makes a failure repeatable."""
    chance = random.Random(20)  # noqa: S311 - damage, not secrets
    templates = [
        frames.encode(messages.OpenLog("k7f3-9m2q-x4tz-b1cd", 3), 1),
        frames.encode(messages.StopJob(CALLER, "k7f3-9m2q-x4tz-b1cd", 15, 100, force=False), 2),
        frames.encode(messages.Hello(messages.PROTOCOL, subscribe=True), 3),
    ]
    for _ in range(300):
        data = bytearray(chance.choice(templates))
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        link = side.link()
        sockets.send(link.sock, bytes(data))
        link.close()
    assert alive(side)
    assert json.loads(side.log().splitlines()[0])["event"] == "adopted"


def test_a_peer_that_does_not_read_holds_up_nobody(side: RootSide, link: Link) -> None:
    silent = side.link(subscribe=True)
    record = link.start("/bin/sh", "-c", "while :; do echo x; done")
    sockets.send(silent.sock, frames.encode(messages.FollowLog(record.job_id), 2))
    for _ in range(300):
        link.ask(messages.InspectJob(record.job_id))
        link.wait_ended(link.start("/bin/true").job_id)
    assert link.stop(record.job_id, force=True).ended_ns
    silent.close()


def test_what_a_gateway_of_ours_does_not_do_is_on_record(side: RootSide) -> None:
    rude, broken = sockets.connect(side.settings.socket_path), side.link()
    sockets.send(rude, frames.encode(messages.InspectJob("k7f3-9m2q-x4tz-b1cd"), 1))
    sockets.send(broken.sock, b"{}")
    until(
        lambda: (
            {line["event"] for line in events(side.state_dir, "calls")} >= {"request_refused", "protocol_error"}
        ),
        True,
    )
    (refused, *_) = [line for line in events(side.state_dir, "calls") if line["event"] == "request_refused"]
    assert (refused["request"], refused["by"], refused["decision"]) == ("InspectJob", "supervisor", "deny")
    rude.close()

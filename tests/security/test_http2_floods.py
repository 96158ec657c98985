"""Floods below gRPC, by a peer with a certificate: frames that cost their sender little and a server much."""

from __future__ import annotations

import itertools
import math
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import certs, gateway, http2
from support.http2 import frame
from support.scripted_supervisor import job_id

QUERY = pb.QueryRequest(job_id=job_id(1))
METHOD = "/jobworker.api.v1.JobWorkerService/Query"
CALLS = 30
# So much of a flood goes out at once, and so much of it in all on a connection that takes it.
BATCH, BATCHES = 500, 40
MIB = 1024
# A peer that stops reading is left, and comes again.
SECONDS = 2.0


def resets() -> Iterator[bytes]:
    """CVE-2023-44487: calls that are taken back at once."""
    for stream in itertools.count(1, 2):
        headers = frame(http2.HEADERS, http2.END_HEADERS, stream, http2.call(METHOD))
        yield headers + frame(http2.RST_STREAM, 0, stream, http2.CANCEL)


def continuations() -> Iterator[bytes]:
    """CVE-2024-27316: headers that never end."""
    yield frame(http2.HEADERS, 0, 1, http2.call(METHOD))
    more = http2.header(b"x", b"y" * 100) * 10
    yield from itertools.repeat(frame(http2.CONTINUATION, 0, 1, more))


def pings() -> Iterator[bytes]:
    """CVE-2019-9512."""
    return itertools.repeat(frame(http2.PING, 0, 0, bytes(8)))


def settings() -> Iterator[bytes]:
    """CVE-2019-9515: each has to be answered."""
    return itertools.repeat(frame(http2.SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535)))


def empty_frames() -> Iterator[bytes]:
    """CVE-2019-9518: data without data, of a call that never ends."""
    yield frame(http2.HEADERS, http2.END_HEADERS, 1, http2.call(METHOD))
    yield from itertools.repeat(frame(0, 0, 1))


class Flooding:
    """Sends a flood again and again, on so many connections one after the other, and never reads."""

    def __init__(self, address: str, flood: Callable[[], Iterator[bytes]], connections: float) -> None:
        self.connections = self.batches = self.ended = 0
        self._most = connections
        self._address, self._flood = address, flood
        self._over, self.begun = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self.begun.wait(gateway.DEADLINE):
            self.__exit__()
            pytest.fail("nothing of the flood goes out")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while self.connections < self._most and not self._over.is_set():
            frames = self._flood()
            try:
                with http2.connection(self._address, certs.dev_pki().files("writer"), SECONDS) as secure:
                    self.connections += 1
                    for _ in range(BATCHES):
                        secure.sendall(b"".join(itertools.islice(frames, BATCH)))
                        self.batches += 1
                        self.begun.set()
                        if self._over.is_set():
                            break
            except OSError:
                # It was hung up on, or the peer does not take more.
                self.ended += 1


# Calls that are taken back at once, and headers without end, are no burden of one connection alone:
# docs/security.md has it so.
@pytest.mark.parametrize(
    ("flood", "connections"),
    [(resets, 1), (continuations, 1), *((flood, math.inf) for flood in (pings, settings, empty_frames))],
)
def test_others_are_answered(
    served: gateway.Gateway, printout: list[str], flood: Callable[[], Iterator[bytes]], connections: float
) -> None:
    with served.stub(name="reader") as other:
        other.Query(QUERY)
        before, files = served.memory_kib(), len(served.open_files())
        with Flooding(served.address, flood, connections) as flooding:
            for _ in range(CALLS):
                assert other.Query(QUERY).job.id == job_id(1)
        grown = served.memory_kib("VmHWM") - before
        told = (
            f"{flooding.batches * BATCH} on {flooding.connections} connections, of which {flooding.ended} were cut"
        )
        printout.append(f"{flood.__name__}: {told}; {grown // MIB} MiB more memory at the most")
        assert grown < 100 * MIB
        # And as ever after it.
        assert other.Query(QUERY).job.id == job_id(1)
        assert len(served.open_files()) < files + 20
    assert served.process.poll() is None


def test_who_acknowledges_no_limit_is_held_to_it(served: gateway.Gateway) -> None:
    more = http2.header(b"x", b"y" * 100) * 100
    frames = [
        frame(http2.HEADERS, 0, 1, http2.call(METHOD)),
        frame(http2.CONTINUATION, 0, 1, more),
        frame(http2.CONTINUATION, http2.END_HEADERS, 1, more),
    ]
    with http2.connection(served.address, certs.dev_pki().files("writer"), gateway.DEADLINE) as secure:
        secure.sendall(b"".join(frames))
        received = b""
        while b"metadata" not in received:
            received += secure.recv(65_536)
    assert b"metadata: has more than 16384 bytes" in received
    (call,) = served.calls("Query")
    assert (call["code"], call["principal"].endswith("/user/writer")) == ("INVALID_ARGUMENT", True)


@pytest.mark.parametrize("flood", [continuations, pings])
def test_who_makes_no_sense_is_hung_up_on(served: gateway.Gateway, flood: Callable[[], Iterator[bytes]]) -> None:
    # Some as late as their answer to the server's keepalive is missed.
    with http2.connection(served.address, certs.dev_pki().files("writer"), 2 * gateway.DEADLINE) as secure:
        assert is_cut(secure, flood())


def is_cut(secure: ssl.SSLSocket, frames: Iterator[bytes]) -> bool:
    """Whether the peer ends the connection, before or after all of a flood was sent."""
    try:
        for _ in range(BATCHES):
            secure.sendall(b"".join(itertools.islice(frames, BATCH)))
        while secure.recv(65_536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True

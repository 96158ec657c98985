"""The agent's own pair and its CAs, replaced while connections come and go."""

from __future__ import annotations

import functools
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.settings.schema import TlsSettings
from support import certs, gateway
from support.certs import Pair, Recipe, make
from support.files import put
from support.scripted_supervisor import ScriptedSupervisor, job_id, record

CA = certs.dev_pki().pair("ca")
HOST = Recipe("host", uris=(), hosts=("127.0.0.1",), usage=certs.SERVER_AUTH, roles=())
_THREADS = 8
_ROTATIONS = 20


@dataclass
class Rotating:
    """A running gateway and its files."""

    running: gateway.Gateway
    tls: TlsSettings

    def rotate(self, number: int) -> Pair:
        pair = make(replace(HOST, key=("rsa4096", "other4096")[number % 2]), CA)
        # One half after the other, as it is done everywhere: between them the two do not fit.
        put(self.tls.cert, pair.cert_pem)
        put(self.tls.key, pair.key_pem)
        return pair

    def stale_files(self) -> list[pb.StaleFile]:
        """What the agent says of files that it cannot use."""
        with self.running.stub() as stub:
            return list(stub.GetAgentInfo(pb.GetAgentInfoRequest()).stale_files)

    def serial(self) -> int:
        """Of the certificate that a new connection is shown; the handshake is complete on both sides."""
        host, _, port = self.running.address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), gateway.DEADLINE) as plain,
            _tls().wrap_socket(plain, server_hostname=host) as tls,
        ):
            assert tls.recv(1), "the server has not accepted the client"
            shown = tls.getpeercert(binary_form=True)
        assert shown
        return x509.load_der_x509_certificate(shown).serial_number


@functools.cache
def _tls() -> ssl.SSLContext:
    """What a client begins each handshake with, and no session of an earlier one."""
    files = certs.dev_pki().files("writer")
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])
    return context


@pytest.fixture
def rotating(tmp_path: Path) -> Iterator[Rotating]:
    supervisor = ScriptedSupervisor(str(tmp_path))
    supervisor.records = [record(1)]
    pki = certs.dev_pki().copy(tmp_path / "pki")
    settings = gateway.settings(str(tmp_path), pki.files("server"))
    with gateway.gateway(tmp_path, settings) as running:
        yield Rotating(running, settings.tls)
    supervisor.close()


def test_no_handshake_fails_and_no_stream_ends(rotating: Rotating, printout: list[str]) -> None:
    seen: list[int] = []
    failures: list[Exception] = []
    done = threading.Event()

    def connect_all_the_time() -> None:
        while not done.is_set():
            try:
                seen.append(rotating.serial())
            except (OSError, AssertionError) as error:
                failures.append(error)

    threads = [threading.Thread(target=connect_all_the_time) for _ in range(_THREADS)]
    with rotating.running.stub() as stub:
        stream = stub.Stream(pb.StreamRequest(job_id=job_id(1), follow=True))
        stream.initial_metadata()
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            pairs = []
            for number in range(_ROTATIONS):
                pairs.append(rotating.rotate(number))
                stub.List(pb.ListRequest())
                # Some connections with each.
                goal = len(seen) + 2 * _THREADS
                while len(seen) < goal and not failures:
                    done.wait(0.005)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        seconds = time.monotonic() - begin
        printout.append(f"{len(seen)} handshakes over {_ROTATIONS} rotations, {len(seen) / seconds:.0f} a second")
        assert failures == []
        assert stream.is_active()
        stream.cancel()
    assert rotating.serial() == pairs[-1].certificate.serial_number
    assert len(set(seen)) > _ROTATIONS // 2


def test_half_of_a_pair_leaves_the_old_one_and_is_told(rotating: Rotating) -> None:
    before = rotating.serial()
    other = make(replace(HOST, key="other4096"), CA)
    put(rotating.tls.cert, other.cert_pem)
    assert rotating.serial() == before
    assert "certificates: the files have changed and cannot be used" in rotating.running.log()
    assert f"{rotating.tls.key}: is not the key of the certificate" in rotating.running.log()
    (stale,) = rotating.stale_files()
    assert (stale.what, "is not the key of the certificate" in stale.problem) == ("certificates", True)
    put(rotating.tls.key, other.key_pem)
    assert rotating.serial() == other.certificate.serial_number
    assert rotating.stale_files() == []


@pytest.mark.parametrize("broken", [b"", b"-----BEGIN CERTIFICATE-----\nMIIF"])
def test_half_of_a_file_likewise(rotating: Rotating, broken: bytes) -> None:
    before = rotating.serial()
    put(rotating.tls.cert, broken)
    assert rotating.serial() == before
    os.unlink(rotating.tls.cert)
    assert rotating.serial() == before


def test_the_agent_tells_the_end_of_the_pair_in_use(rotating: Rotating) -> None:
    with rotating.running.stub() as stub:
        before = stub.GetAgentInfo(pb.GetAgentInfoRequest()).certificate_expires_at
        pair = rotating.rotate(0)
        after = stub.GetAgentInfo(pb.GetAgentInfoRequest()).certificate_expires_at
    assert after != before
    assert after.ToDatetime() == pair.certificate.not_valid_after_utc.replace(tzinfo=None)


def test_a_ca_that_is_added_and_one_that_is_taken_away(rotating: Rotating, tmp_path: Path) -> None:
    ca = Recipe("another", uris=(), usage=None, roles=(), key="foreign4096", ca=True)
    another = make(ca)
    files = make(Recipe(), another).save(tmp_path, "newcomer")

    def code(who: certs.Files) -> str:
        with rotating.running.stub(who) as stub:
            try:
                stub.List(pb.ListRequest())
            except grpc.RpcError as error:
                return gateway.code(error)
        return "OK"

    assert code(files) == "UNAVAILABLE"
    put(rotating.tls.ca, CA.cert_pem + another.cert_pem)
    assert (code(files), code(certs.dev_pki().files("writer"))) == ("OK", "OK")
    put(rotating.tls.ca, CA.cert_pem)
    assert code(make(Recipe(), another).save(tmp_path, "latecomer")) == "UNAVAILABLE"


def test_following_the_advice_is_enough(rotating: Rotating) -> None:
    before = rotating.serial()
    other = make(replace(HOST, key="other4096"), CA)
    put(rotating.tls.cert, other.cert_pem)
    put(rotating.tls.key, other.key_pem)
    os.chmod(rotating.tls.key, 0o644)
    # It may have been seen between two of these.
    if rotating.serial() == before:
        assert f"chmod 0600 {rotating.tls.key}" in rotating.running.log()
    os.chmod(rotating.tls.key, 0o600)
    assert rotating.serial() == other.certificate.serial_number


def test_a_pair_that_has_ended_does_not_replace_one_that_has_not(rotating: Rotating) -> None:
    before = rotating.serial()
    ended = make(replace(HOST, begin=timedelta(hours=-2), end=timedelta(hours=-1)), CA)
    put(rotating.tls.cert, ended.cert_pem)
    put(rotating.tls.key, ended.key_pem)
    assert rotating.serial() == before
    assert "is not valid now, and the one in use is" in rotating.running.log()

"""The gateway's end of TLS: 1.3 only, as seen by openssl; its own files; certificates that end while in use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.settings import schema
from jobworker.wire.messages import LogSegment, OpenLog
from support import certs, gateway, processes, tls
from support.certs import SERVER_AUTH, Recipe, make
from support.ports import own_address
from support.scripted_supervisor import Answer, ScriptedSupervisor, job_id, record
from support.tls import OLD_VERSIONS, negotiated, openssl
from support.waiting import until

SERVER = Recipe("localhost", uris=(), hosts=("localhost", "127.0.0.1"), usage=SERVER_AUTH, roles=())


def tls12_suites() -> list[str]:
    listed = openssl("ciphers", "-s", "-tls1_2", "ALL:COMPLEMENTOFALL:@SECLEVEL=0").stdout.strip()
    return [suite for suite in listed.split(":") if not suite.startswith("TLS_")]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateway.Gateway]:
    with gateway.gateway(tmp_path_factory.mktemp("gateway")) as started:
        yield started


@pytest.fixture(scope="module")
def with_ecdsa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateway.Gateway]:
    """A gateway whose own key is ECDSA, as the settings may have it."""
    directory = tmp_path_factory.mktemp("ecdsa")
    pair = make(replace(SERVER, key="p256"), certs.dev_pki().pair("ca"))
    wanted = gateway.settings(str(directory), pair.save(directory, "server"))
    rules = schema.CertificateSettings(key_types=("rsa", "ecdsa"))
    wanted = replace(wanted, tls=replace(wanted.tls, certificates=rules))
    with gateway.gateway(directory, wanted) as started:
        yield started


def s_client(running: gateway.Gateway, *options: str) -> str:
    """What openssl says of a connection with the writer's certificate."""
    return tls.s_client(running.address, certs.dev_pki().files("writer"), *options)


def test_tls_1_3_is_spoken(running: gateway.Gateway, with_ecdsa: gateway.Gateway) -> None:
    for server, signed in ((running, "RSA-PSS"), (with_ecdsa, "ECDSA")):
        said = s_client(server, "-tls1_3")
        assert negotiated(said) == "TLSv1.3"
        assert "Verify return code: 0" in said
        assert f"Peer signature type: {signed}" in said


@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_older_versions_are_refused(running: gateway.Gateway, with_ecdsa: gateway.Gateway, version: str) -> None:
    for server in (running, with_ecdsa):
        assert negotiated(s_client(server, version, "-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0")) is None


@pytest.mark.parametrize("suite", tls12_suites())
def test_every_suite_of_tls_1_2_is_refused(
    running: gateway.Gateway, with_ecdsa: gateway.Gateway, suite: str
) -> None:
    for server in (running, with_ecdsa):
        said = s_client(server, "-tls1_2", "-cipher", f"{suite}:@SECLEVEL=0")
        assert negotiated(said) is None
        assert "CONNECTED(" in said, "openssl has tried"
        assert "no peer certificate available" in said


def test_there_are_suites_to_refuse() -> None:
    assert len(tls12_suites()) > 50


def test_openssl_can_speak_tls_1_2_to_others() -> None:
    """Else the refusals above would prove nothing."""
    files, address = certs.dev_pki().files("server"), own_address()
    command = ["openssl", "s_server", "-accept", address, "-cert", files.cert, "-key", files.key, "-quiet"]
    with processes.running(command, stdout=subprocess.DEVNULL):
        until(lambda: negotiated(openssl("s_client", "-connect", address, "-tls1_2").stdout), "TLSv1.2")


# What the gateway does not start with.


def settings(tmp_path: Path, **changes: Any) -> schema.Settings:
    own = certs.dev_pki().files("server")
    return gateway.settings(str(tmp_path), replace(own, **changes))


def one_sentence(said: str) -> str:
    (line,) = said.splitlines()
    assert line.startswith("jobworker gateway: ")
    return line


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o601])
def test_a_key_that_others_can_use(tmp_path: Path, mode: int) -> None:
    key = certs.dev_pki().copy(tmp_path / "pki").path("server.key")
    os.chmod(key, mode)
    if os.geteuid() == 0 and mode == 0o640:
        os.chown(key, 0, os.getegid() + 12_345)
    said = one_sentence(gateway.refusal(tmp_path, settings(tmp_path, key=key)))
    assert key in said
    assert f"mode {mode:04o}" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user(tmp_path: Path) -> None:
    key = certs.dev_pki().copy(tmp_path / "pki").path("server.key")
    os.chown(key, 12_345, -1)
    assert "belongs to another user" in one_sentence(gateway.refusal(tmp_path, settings(tmp_path, key=key)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root owns files of root")
def test_a_key_that_root_lends_to_the_group(tmp_path: Path) -> None:
    key = certs.dev_pki().copy(tmp_path / "pki").path("server.key")
    os.chmod(key, 0o640)
    with gateway.gateway(tmp_path, settings(tmp_path, key=key)) as started:
        assert started.address


def test_a_key_of_another_certificate(tmp_path: Path) -> None:
    key = certs.dev_pki().path("writer.key")
    assert "is not the key of the certificate" in one_sentence(
        gateway.refusal(tmp_path, settings(tmp_path, key=key))
    )


@pytest.mark.parametrize("file", ["ca", "cert", "key"])
def test_a_file_that_is_not_there(tmp_path: Path, file: str) -> None:
    path = str(tmp_path / "missing.pem")
    said = one_sentence(gateway.refusal(tmp_path, settings(tmp_path, **{file: path})))
    assert f"{path}: cannot be read: No such file or directory" in said


@pytest.mark.parametrize("file", ["ca", "cert", "key"])
def test_a_file_that_holds_something_else(tmp_path: Path, file: str) -> None:
    path = tmp_path / "other.pem"
    path.write_text("nothing of interest\n")
    path.chmod(0o600)
    assert f"{path}: holds no" in one_sentence(gateway.refusal(tmp_path, settings(tmp_path, **{file: str(path)})))


@pytest.mark.parametrize("key", ["rsa2048", "p256"])
def test_a_key_that_is_too_weak(tmp_path: Path, key: str) -> None:
    files = make(replace(SERVER, key=key), certs.dev_pki().pair("ca")).save(tmp_path, "weak")
    said = one_sentence(gateway.refusal(tmp_path, gateway.settings(str(tmp_path), files)))
    assert "not RSA with 4096 bits" in said


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.org:0"])
def test_development_certificates_stay_off_the_network(tmp_path: Path, listen: str) -> None:
    said = one_sentence(gateway.refusal(tmp_path, replace(settings(tmp_path), listen=listen)))
    assert "development CA" in said


def test_a_ca_with_dev_in_its_name_is_not_thereby_one_for_development(tmp_path: Path) -> None:
    ca = make(replace(SERVER, common_name="ACME DEVICES Issuing CA", hosts=(), usage=None, ca=True))
    files = replace(make(SERVER, ca).save(tmp_path, "own"), ca=ca.save(tmp_path, "ca").cert)
    with gateway.gateway(tmp_path, gateway.settings(str(tmp_path), files, "0.0.0.0:0")) as started:
        assert started.address.startswith("0.0.0.0:")


def test_an_address_that_is_in_use(tmp_path: Path, running: gateway.Gateway) -> None:
    """No second gateway may take half of the connections of the first."""
    said = gateway.refusal(tmp_path, replace(settings(tmp_path), listen=running.address))
    assert f"{running.address} cannot be had" in one_sentence(said)


def test_signals_that_keep_coming_do_not_kill_a_gateway_that_stops(tmp_path: Path) -> None:
    with gateway.gateway(tmp_path, settings(tmp_path)) as started:
        while started.process.poll() is None:
            started.process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        assert started.process.returncode == 0


def test_settings_that_are_none(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "jobworker.gateway", "--settings", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 1
    assert "none" in one_sentence(said.stderr)


# Certificates that end while they are in use.


def short_lived(directory: Path) -> certs.Files:
    """One that lasts for a connection and a call, made when there is somebody to connect to."""
    return make(Recipe(end=timedelta(seconds=5)), certs.dev_pki().pair("ca")).save(directory, "short")


def test_a_stream_ends_with_its_certificate(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(str(tmp_path))
    supervisor.records = [record(1)]
    try:
        with gateway.gateway(tmp_path) as running, running.stub(short_lived(tmp_path)) as stub:
            call = stub.Stream(pb.StreamRequest(job_id=job_id(1), follow=True, offset=0))
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert (gateway.code(caught.value), gateway.reason(caught.value)) == (
                "UNAUTHENTICATED",
                "UNAUTHENTICATED",
            )
            assert "expired" in str(caught.value)
            assert dict(call.trailing_metadata())["jobworker-resume-offset"] == "0"
    finally:
        supervisor.close()


def test_so_does_one_whose_client_has_not_read_yet(tmp_path: Path) -> None:
    """The first message is still under way then, and the status must come behind it all the same."""
    size = 1024 * 1024
    supervisor = ScriptedSupervisor(str(tmp_path))
    supervisor.records = [record(1, segment_bytes=size, log_bytes=size)]
    supervisor.handlers[OpenLog] = lambda request: Answer(
        LogSegment(request.job_id, 0, 0), (zeros(size), os.memfd_create("index"))
    )
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 * 1024)]
    try:
        with (
            gateway.gateway(tmp_path) as running,
            grpc.secure_channel(running.address, gateway.credentials(short_lived(tmp_path)), options) as slow,
        ):
            call = JobWorkerServiceStub(slow).Stream(pb.StreamRequest(job_id=job_id(1)))
            running.wait_for_calls("Stream", 1)
            chunks: list[int] = []
            with pytest.raises(grpc.RpcError) as caught:
                chunks.extend(len(message.chunk.data) for message in call)
            received = sum(chunks)
            assert 0 < received < size
            assert gateway.reason(caught.value) == "UNAUTHENTICATED"
            assert dict(call.trailing_metadata())["jobworker-resume-offset"] == str(received)
    finally:
        supervisor.close()


def zeros(size: int) -> int:
    fd = os.memfd_create("log")
    os.truncate(fd, size)
    return fd


def test_so_does_a_watch_of_the_health(running: gateway.Gateway, tmp_path: Path) -> None:
    with running.channel(short_lived(tmp_path)) as channel:
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(call).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert gateway.code(caught.value) == "UNAUTHENTICATED"


def test_a_connection_is_of_no_use_behind_its_certificate(running: gateway.Gateway, tmp_path: Path) -> None:
    """It stays open, and its session could be resumed: TLS does not look at the date again."""
    with running.channel(short_lived(tmp_path)) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        codes = set()
        deadline = time.monotonic() + 20
        while "UNAUTHENTICATED" not in codes and time.monotonic() < deadline:
            try:
                health.Check(health_pb2.HealthCheckRequest())
                codes.add("OK")
            except grpc.RpcError as error:
                codes.add(gateway.code(error))
        assert codes == {"OK", "UNAUTHENTICATED"}


def test_silent_connections_are_let_go(running: gateway.Gateway) -> None:
    """A peer that never begins its handshake is cut off by the server."""
    host, _, port = running.address.rpartition(":")
    with socket.create_connection((host, int(port))) as silent:
        silent.settimeout(40)
        assert silent.recv(1) == b""

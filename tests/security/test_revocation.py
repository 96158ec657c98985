"""Certificates that are revoked while a gateway runs."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.errors import Unauthenticated
from jobworker.gateway import revocation
from jobworker.settings.schema import MetricsSettings, Settings, TlsSettings
from support import certs, gateway, pki
from support.certs import Recipe, make
from support.files import put
from support.scripted_supervisor import ScriptedSupervisor, job_id, record

CA = certs.dev_pki().pair("ca")


class Running:
    """A gateway whose CA has a list, and one job whose output does not end."""

    def __init__(self, directory: Path, supervisor: ScriptedSupervisor) -> None:
        self.directory, self.supervisor = directory, supervisor
        self.crl = directory / "list.pem"
        self.users = {name: make(Recipe(common_name=name), CA) for name in ("gone", "other")}
        self.files = {name: who.save(directory, name) for name, who in self.users.items()}
        self.replace(certs.crl(CA))

    def replace(self, data: bytes, *, path: Path | None = None) -> None:
        put(path or self.crl, data)

    def settings(self) -> Settings:
        pki = certs.dev_pki().copy(self.directory / "pki")
        made = gateway.settings(str(self.directory), pki.files("server"))
        return replace(made, tls=replace(made.tls, crl=str(self.crl)))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Running]:
    supervisor = ScriptedSupervisor(str(tmp_path))
    supervisor.records = [record(1)]
    yield Running(tmp_path, supervisor)
    supervisor.close()


def query(stub: Any) -> str:
    """The call's code."""
    try:
        stub.List(pb.ListRequest())
    except grpc.RpcError as error:
        return gateway.code(error)
    return "OK"


@pytest.mark.parametrize(
    ("method", "request_", "trailer"),
    [
        ("Stream", pb.StreamRequest(job_id=job_id(1), follow=True), "jobworker-resume-offset"),
        ("Watch", pb.WatchRequest(job_ids=[job_id(2)]), "jobworker-resume-token"),
    ],
)
def test_a_revoked_certificate_ends_its_streams_and_no_others(
    world: Running, method: str, request_: Any, trailer: str
) -> None:
    with (
        gateway.gateway(world.directory, world.settings()) as running,
        running.stub(world.files["gone"]) as gone,
        running.stub(world.files["other"]) as other,
    ):
        assert (query(gone), query(other)) == ("OK", "OK")
        ending, going_on = (getattr(stub, method)(request_) for stub in (gone, other))
        for call in (ending, going_on):
            call.initial_metadata()
            if method == "Watch":
                assert next(call).HasField("mark")
        world.replace(certs.crl(CA, world.users["gone"]))
        # At once, on the connection that is up.
        assert (query(gone), query(other)) == ("UNAUTHENTICATED", "OK")
        with pytest.raises(grpc.RpcError) as caught:
            next(ending)
        assert gateway.code(caught.value) == "UNAUTHENTICATED"
        assert "revoked" in str(caught.value)
        assert dict(ending.trailing_metadata())[trailer]
        assert going_on.is_active()
        with running.stub(world.files["gone"]) as anew:
            assert query(anew) == "UNAUTHENTICATED"
        going_on.cancel()
        assert "revocations: read anew" in running.log()


@pytest.mark.parametrize("broken", [b"", b"-----BEGIN X509 CRL-----\n", certs.crl(certs.foreign_ca())])
def test_a_list_that_cannot_be_used_leaves_the_last_one(world: Running, broken: bytes) -> None:
    world.replace(certs.crl(CA, world.users["gone"]))
    with (
        gateway.gateway(world.directory, world.settings()) as running,
        running.stub(world.files["gone"]) as gone,
        running.stub(world.files["other"]) as other,
    ):
        assert (query(gone), query(other)) == ("UNAUTHENTICATED", "OK")
        world.replace(broken)
        assert (query(gone), query(other)) == ("UNAUTHENTICATED", "OK")
        assert "the files have changed and cannot be used" in running.log()
        world.crl.unlink()
        assert (query(gone), query(other)) == ("UNAUTHENTICATED", "OK")
        world.replace(certs.crl(CA))
        assert (query(gone), query(other)) == ("OK", "OK")


def test_a_call_that_was_begun_before_is_refused(world: Running) -> None:
    """The request is long in coming: a certificate that is revoked meanwhile is of no use."""
    revoked = threading.Event()

    def late() -> Iterator[pb.ListRequest]:
        assert revoked.wait(gateway.DEADLINE)
        yield pb.ListRequest()

    with (
        gateway.gateway(world.directory, world.settings()) as running,
        running.channel(world.files["gone"]) as channel,
        running.stub(world.files["other"]) as other,
    ):
        call = channel.stream_unary(
            "/jobworker.api.v1.JobWorkerService/List",
            request_serializer=pb.ListRequest.SerializeToString,
            response_deserializer=pb.ListResponse.FromString,
        )
        answer = call.future(late())
        # Of one connection the server takes up calls in their order.
        assert query(JobWorkerServiceStub(channel)) == "OK"
        world.replace(certs.crl(CA, world.users["gone"]))
        assert query(other) == "OK"
        revoked.set()
        with pytest.raises(grpc.RpcError) as caught:
            answer.result(gateway.DEADLINE)
        assert gateway.code(caught.value) == "UNAUTHENTICATED"


def test_the_metrics_are_not_for_the_revoked_either(world: Running) -> None:
    settings = replace(world.settings(), metrics=MetricsSettings("127.0.0.1:0"))
    with gateway.gateway(world.directory, settings) as running:
        (line,) = (json.loads(line) for line in running.log().splitlines() if '"serving"' in line)

        def scrape(name: str) -> bytes:
            host, _, port = line["metrics"].rpartition(":")
            files = world.files[name]
            context = ssl.create_default_context(cafile=files.ca)
            context.load_cert_chain(files.cert, files.key)
            with (
                socket.create_connection((host, int(port)), gateway.DEADLINE) as plain,
                context.wrap_socket(plain, server_hostname=host) as tls_socket,
            ):
                tls_socket.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                try:
                    return tls_socket.makefile("rb").read()
                except OSError:
                    return b""

        assert b"jobworker_build_info" in scrape("gone")
        world.replace(certs.crl(CA, world.users["gone"]))
        assert scrape("gone") == b""
        assert b'jobworker_certificate_expiry_timestamp_seconds{certificate="crl"}' in scrape("other")
        world.replace(b"broken")
        assert scrape("gone") == b""
        assert b"jobworker_trust_stale 1.0" in scrape("other")


def test_the_agent_tells_when_its_list_ends(world: Running) -> None:
    ends = x509.load_pem_x509_crl(world.crl.read_bytes()).next_update_utc
    with gateway.gateway(world.directory, world.settings()) as running, running.stub() as stub:
        told = stub.GetAgentInfo(pb.GetAgentInfoRequest()).crl_expires_at
    assert ends is not None
    assert told.seconds == int(ends.timestamp())


def test_a_hangup_reads_everything_again(world: Running) -> None:
    with gateway.gateway(world.directory, world.settings()) as running:
        before = running.log().count("read anew")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for_log("revocations: read anew")
        assert running.log().count("read anew") == before + 2
        with running.stub(world.files["other"]) as other:
            assert query(other) == "OK"


def test_a_gateway_whose_list_is_broken_does_not_start(world: Running) -> None:
    world.replace(b"nothing")
    said = gateway.refusal(world.directory, world.settings())
    assert f"{world.crl}: holds no revocation list in PEM form" in said


def test_lists_of_worker_pki_are_understood(tmp_path: Path) -> None:
    made = pki.copied(tmp_path / "pki")
    made.ok("issue", "user", "carol", "--role", "READER")
    made.ok("issue", "host", "build9.example.org")
    made.ok("revoke", made.path("users", "carol.pem"))
    made.ok("crl")
    files = TlsSettings(
        made.path("ca.pem"),
        made.path("hosts", "build9.example.org.pem"),
        made.path("hosts", "build9.example.org.key"),
        crl=made.path("intermediate.crl"),
    )
    known = revocation.load(files)
    with open(made.path("users", "carol.pem"), "rb") as file:
        carol = x509.load_pem_x509_certificate(file.read())
    with pytest.raises(Unauthenticated, match="was revoked"):
        known.check(carol, time.time())

"""Metrics of a real agent, scraped as Prometheus does."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobworker.api.v1 import job_worker_service_pb2 as service
from jobworker.api.v1 import job_worker_service_pb2_grpc as api
from support.agent import DEADLINE, Agent, running_agent

SERVICE = "jobworker.api.v1.JobWorkerService"


class Scraper:
    """Scrapes an agent."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        serving = next(line for line in agent.log().splitlines() if '"serving"' in line)
        host, _, port = json.loads(serving)["metrics"].rpartition(":")
        self.address = (host, int(port))

    def context(self, role: str = "") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=os.path.join(self.agent.pki_dir, "ca.pem"))
        if role:
            pair = (os.path.join(self.agent.pki_dir, f"{role}.{kind}") for kind in ("pem", "key"))
            context.load_cert_chain(*pair)
        return context

    def ask(self, method: str = "GET", path: str = "/metrics", role: str = "reader") -> tuple[int, str]:
        connection = http.client.HTTPSConnection(*self.address, timeout=DEADLINE, context=self.context(role))
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def value(self, name: str, **labels: str) -> float:
        """Of one series; 0 where there is none yet."""
        status, text = self.ask()
        assert status == 200
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        return sum(s.value for s in samples if s.name == name and s.labels.items() >= labels.items())


@pytest.fixture(scope="module")
def scraper() -> Iterator[Scraper]:
    with running_agent("metrics: {listen: '127.0.0.1:0'}\n") as agent:
        yield Scraper(agent)


def test_jobs_and_calls_are_counted(scraper: Scraper) -> None:
    started = scraper.value("jobworker_jobs_started_total")
    exited = scraper.value("jobworker_jobs_ended_total", reason="exited")
    logged = scraper.value("jobworker_log_bytes_total")
    calls = scraper.value("jobworker_rpcs_total", method=f"{SERVICE}/Start", code="OK")
    assert scraper.agent.cli("run", "--", "echo", "hello").stdout == b"hello\n"
    assert scraper.value("jobworker_jobs_started_total") == started + 1
    assert scraper.value("jobworker_jobs_ended_total", reason="exited") == exited + 1
    assert scraper.value("jobworker_log_bytes_total") > logged
    assert scraper.value("jobworker_rpcs_total", method=f"{SERVICE}/Start", code="OK") == calls + 1
    assert scraper.value("jobworker_rpc_duration_seconds_count", method=f"{SERVICE}/Start") == calls + 1
    assert scraper.value("jobworker_supervisor_up") == 1


def test_denials_are_counted(scraper: Scraper) -> None:
    before = scraper.value("jobworker_denials_total")
    assert scraper.agent.cli("start", "true", role="reader").returncode == 4
    assert scraper.value("jobworker_denials_total") == before + 1


def test_no_metrics_without_a_client_certificate(scraper: Scraper) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        scraper.ask(role="")


def test_no_metrics_below_tls_1_3(scraper: Scraper) -> None:
    context = scraper.context("reader")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(scraper.address, DEADLINE) as raw, pytest.raises(ssl.SSLError):
        context.wrap_socket(raw, server_hostname="127.0.0.1")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("POST", "/metrics", 405), ("HEAD", "/metrics", 200)]
)
def test_nothing_else_is_served(scraper: Scraper, method: str, path: str, status: int) -> None:
    assert scraper.ask(method, path) == (status, "")


def answer_to(scraper: Scraper, request: bytes) -> bytes:
    """What comes back over TLS before the connection's end, however it ends."""
    answer = b""
    with (
        socket.create_connection(scraper.address, DEADLINE) as raw,
        scraper.context("reader").wrap_socket(raw, server_hostname="127.0.0.1") as tls,
        contextlib.suppress(ssl.SSLError, ConnectionError),
    ):
        tls.sendall(request)
        while piece := tls.recv(1000):
            answer += piece
    return answer


def test_garbage_and_silence_hurt_nobody(scraper: Scraper) -> None:
    silent = [socket.create_connection(scraper.address, DEADLINE) for _ in range(50)]
    try:
        for garbage in (b"GET /metrics HTTP/1.1\r\n\r\n", b"\x16\x03" + b"\xff" * 4000):
            with socket.create_connection(scraper.address, DEADLINE) as raw:
                raw.sendall(garbage)
        assert answer_to(scraper, b"x" * 100_000) == b""
        assert answer_to(scraper, b"x\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        assert scraper.ask()[0] == 200
    finally:
        for connection in silent:
            connection.close()


def test_a_scrape_while_fifty_streams_are_open(scraper: Scraper) -> None:
    job = scraper.agent.start_job("sleep", "1000")
    agent_files = (os.path.join(scraper.agent.pki_dir, f"reader.{kind}") for kind in ("key", "pem"))
    key, cert = (_read(path) for path in agent_files)
    ca = _read(os.path.join(scraper.agent.pki_dir, "ca.pem"))
    with grpc.secure_channel(scraper.agent.addr, grpc.ssl_channel_credentials(ca, key, cert)) as channel:
        stub = api.JobWorkerServiceStub(channel)
        streams = [stub.Stream(service.StreamRequest(job_id=job, follow=True)) for _ in range(50)]
        for stream in streams:
            stream.initial_metadata()  # is there once the stream is open
        assert scraper.value("jobworker_rpcs_open", method=f"{SERVICE}/Stream") == 50
        for stream in streams:
            stream.cancel()
    scraper.agent.cli("stop", job, check=True)


def test_a_new_pair_is_served_without_a_restart(scraper: Scraper) -> None:
    pki = scraper.agent.pki_dir
    served = {kind: _read(os.path.join(pki, f"server.{kind}")) for kind in ("key", "pem")}
    other = {kind: _read(os.path.join(pki, f"writer.{kind}")) for kind in ("key", "pem")}
    assert served_certificate(scraper) == ssl.PEM_cert_to_DER_cert(served["pem"].decode())
    try:
        _install(pki, other)
        assert served_certificate(scraper) == ssl.PEM_cert_to_DER_cert(other["pem"].decode())
    finally:
        _install(pki, served)
    assert scraper.ask()[0] == 200


def served_certificate(scraper: Scraper) -> bytes | None:
    context = scraper.context("reader")
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(scraper.address, DEADLINE) as raw, context.wrap_socket(raw) as tls:
        return tls.getpeercert(binary_form=True)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _install(pki: str, pair: dict[str, bytes]) -> None:
    for kind, data in pair.items():
        path = os.path.join(pki, f"server.{kind}")
        with open(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        os.rename(f"{path}.new", path)


@pytest.fixture
def plain_agent() -> Iterator[Agent]:
    with running_agent("metrics: {listen: '127.0.0.1:0', plain_http: true}\n") as agent:
        yield agent


def test_plain_http_where_it_is_asked_for(plain_agent: Agent) -> None:
    connection = http.client.HTTPConnection(*Scraper(plain_agent).address, timeout=DEADLINE)
    connection.request("GET", "/metrics")
    assert b"jobworker_build_info" in connection.getresponse().read()
    connection.close()


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian's package prometheus) is not installed")
def test_promtool_finds_nothing(scraper: Scraper) -> None:
    scraper.agent.cli("run", "--", "true")
    text = scraper.ask()[1].encode()
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False, timeout=DEADLINE
    )
    assert (checked.returncode, checked.stderr) == (0, b"")

"""Metrics of a real agent, scraped as Prometheus does."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator

import grpc
import pytest
from prometheus_client import Metric

from jobworker.api.v1 import job_worker_service_pb2 as service
from jobworker.api.v1 import job_worker_service_pb2_grpc as api
from jobworker.gateway.metrics_table import METRICS, Kind
from support import certs, processes
from support.agent import DEADLINE, Agent, running_agent
from support.files import put
from support.scraping import Scraper
from support.waiting import until

SERVICE = "jobworker.api.v1.JobWorkerService"


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


def test_every_metric_of_the_table_is_told_and_no_other(scraper: Scraper) -> None:
    scraper.agent.cli("run", "--", "true")
    told = {family.name: family for family in scraper.families()}
    exposed = {metric_name(family): family for family in told.values()}
    assert exposed.keys() == {name for name, each in METRICS.items() if "job_id" not in each.labels} - {
        "jobworker_jobs_without_series"
    }
    for name, family in exposed.items():
        described = METRICS[name]
        assert (family.documentation, family.type) == (
            described.text,
            "gauge" if described.kind is Kind.INFO else described.kind.value,
        )
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(described.labels)


def metric_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def test_totals_outlive_the_gateway(scraper: Scraper) -> None:
    scraper.agent.cli("run", "--", "echo", "hello")
    names = ("jobs_started_total", "jobs_ended_total", "log_bytes_total", "supervisor_starts_total")
    before = {name: scraper.value(f"jobworker_{name}") for name in names}
    gateway = scraper.agent.pid("gateway")
    os.kill(gateway, signal.SIGKILL)
    # The agent says so in its log, as it says where the next one serves its metrics.
    until(lambda: scraper.agent.log().count('"serving"'), 2, DEADLINE)
    again = Scraper(scraper.agent)
    until(lambda: again.value("jobworker_supervisor_up"), 1, DEADLINE)
    assert {name: again.value(f"jobworker_{name}") for name in names} == before
    scraper.address = again.address


def test_without_a_supervisor_its_last_totals_are_told(scraper: Scraper) -> None:
    scraper.agent.cli("run", "--", "true")
    before = scraper.value("jobworker_jobs_started_total")
    supervisor = scraper.agent.pid("supervisor")
    os.kill(supervisor, signal.SIGSTOP)
    try:
        assert scraper.value("jobworker_jobs_started_total") == before
    finally:
        os.kill(supervisor, signal.SIGCONT)


def test_followers_are_counted(scraper: Scraper) -> None:
    job = scraper.agent.start_job("sleep", "1000")
    with processes.running(scraper.agent.command("stream", job, "--follow")) as following:
        until(lambda: scraper.value("jobworker_followers"), 1, DEADLINE)
        scraper.agent.cli("stop", job, check=True)
        assert following.wait(DEADLINE) == 0
    assert scraper.value("jobworker_followers") == 0


@pytest.fixture(scope="module")
def single() -> Iterator[Scraper]:
    with running_agent("metrics: {listen: '127.0.0.1:0', job_series: 2}\n") as agent:
        yield Scraper(agent)


def test_running_jobs_have_series_if_that_is_asked_for(single: Scraper) -> None:
    jobs = [single.agent.start_job("--", "sh", "-c", "echo hello; exec sleep 1000") for _ in range(4)]
    by_job = {sample.labels["job_id"] for sample in single.samples() if "job_id" in sample.labels}
    assert by_job == set(jobs[:2])
    assert single.value("jobworker_jobs_without_series") == 2
    assert single.value("jobworker_job_processes", job_id=jobs[0]) >= (os.geteuid() == 0)
    until(lambda: single.value("jobworker_job_log_bytes_total", job_id=jobs[1]), len("hello\n"), DEADLINE)
    single.agent.cli("stop", "--force", jobs[0], check=True)
    by_job = {sample.labels["job_id"] for sample in single.samples() if "job_id" in sample.labels}
    assert by_job == {jobs[1], jobs[2]}
    assert {metric_name(family) for family in single.families()} == METRICS.keys()
    for job in jobs[1:]:
        single.agent.cli("stop", "--force", job, check=True)


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
    recipe = certs.Recipe("other", uris=(), hosts=("127.0.0.1",), usage=certs.SERVER_AUTH, roles=())
    made = certs.make(recipe, certs.DevPki(pki).pair("ca"))
    other = {"key": made.key_pem, "pem": made.cert_pem}
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
        put(os.path.join(pki, f"server.{kind}"), data)


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

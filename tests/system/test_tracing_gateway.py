"""The gateway beside its collector: one that is away, settings, and what is not installed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.settings import schema
from support import certs
from support.collector import attributes, collector
from support.gateway import DEADLINE, Gateway, gateway, refusal, settings
from support.ports import closed_address, own_address
from support.waiting import until

# A module of this name is imported at each start of an interpreter.
MISSING = """
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Missing())
"""


def traced(directory: Path, endpoint: str, ratio_millis: int = 1000) -> schema.Settings:
    return replace(settings(str(directory)), tracing=schema.TracingSettings(endpoint, ratio_millis))


def call(running: Gateway, request_id: str, *more: tuple[str, str]) -> None:
    """A call that is refused, since nothing else can be asked without a supervisor."""
    with running.stub() as stub, pytest.raises(grpc.RpcError):
        stub.Query(pb.QueryRequest(job_id="none"), metadata=(("x-request-id", request_id), *more))


def said(running: Gateway, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in running.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def test_nothing_of_it_is_loaded_unless_it_is_asked_for(tmp_path: Path) -> None:
    def loaded(name: str, wanted: schema.Settings) -> bool:
        directory = tmp_path / name
        directory.mkdir()
        with gateway(directory, wanted, PYTHONPROFILEIMPORTTIME="1") as running:
            call(running, "one")
        assert "jobworker.gateway.gate" in running.log()
        return "opentelemetry" in running.log()

    assert not loaded("without", settings(str(tmp_path)))
    assert loaded("with", traced(tmp_path, "http://127.0.0.1:1"))


def test_what_waits_is_sent_at_the_end(tmp_path: Path) -> None:
    with collector() as collecting:
        with gateway(tmp_path, traced(tmp_path, f"http://{collecting.address}")) as running:
            named = [f"call-{number}" for number in range(5)]
            for each in named:
                call(running, each)
        assert [attributes(span)["jobworker.request_id"] for span in collecting.spans] == named


def test_a_collector_that_is_away_costs_one_line(tmp_path: Path) -> None:
    with closed_address() as away, gateway(tmp_path, traced(tmp_path, f"http://{away}")) as running:
        call(running, "one")
        until(lambda: len(said(running, "traces are not sent")), 1, DEADLINE)
        (line,) = said(running, "traces are not sent")
        assert (line["level"], line["endpoint"]) == ("warning", f"http://{away}")
        assert "UNAVAILABLE" in line["problem"]
        call(running, "two")
    assert len(said(running, "traces are not sent")) == 1
    assert "opentelemetry" not in running.log()
    assert "Traceback" not in running.log()


def test_one_that_never_answers_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with gateway(tmp_path, traced(tmp_path, f"http://{address}")) as running:
            call(running, "one")
            # It waits for the answer, and for much longer than it may.
            accepted, _ = silent.accept()
            with accepted:
                assert running.stop() == 0
    assert said(running, "stopped")
    assert "Traceback" not in running.log()


def test_one_that_comes_back_is_sent_to_again(tmp_path: Path) -> None:
    address = own_address()
    with gateway(tmp_path, traced(tmp_path, f"http://{address}")) as running:
        call(running, "lost")
        until(lambda: len(said(running, "traces are not sent")), 1, DEADLINE)
        with collector(address) as second:
            assert second.address == address
            call(running, "found")
            second.of_request("found")
            until(lambda: len(said(running, "traces are sent again")), 1, DEADLINE)
    assert said(running, "traces are sent again")[0]["lost"] >= 1


def test_more_of_what_the_sdk_reads_comes_from_the_environment(tmp_path: Path) -> None:
    with collector() as collecting:
        wanted = traced(tmp_path, f"http://{collecting.address}")
        with gateway(tmp_path, wanted, OTEL_EXPORTER_OTLP_HEADERS="api-key=secret") as running:
            call(running, "one")
        assert (len(collecting.spans), collecting.headers["api-key"]) == (1, "secret")
        assert "secret" not in running.log()
    refused = refusal(tmp_path, wanted, OTEL_EXPORTER_OTLP_COMPRESSION="none-such")
    assert "OTEL_EXPORTER_OTLP_COMPRESSION" in refused
    assert "Traceback" not in refused


def test_by_the_ratio_none_are_told_but_what_a_client_traces(tmp_path: Path) -> None:
    with collector() as collecting:
        with gateway(tmp_path, traced(tmp_path, f"http://{collecting.address}", 0)) as running:
            call(running, "untold")
            call(running, "told", ("traceparent", f"00-{'7' * 32}-{'6' * 16}-01"))
        assert [attributes(span)["jobworker.request_id"] for span in collecting.spans] == ["told"]


@pytest.fixture
def without(tmp_path: Path) -> str:
    """A directory that hides OpenTelemetry from what has it in PYTHONPATH."""
    (tmp_path / "sitecustomize.py").write_text(MISSING)
    return str(tmp_path)


def test_without_the_extra_the_gateway_serves(tmp_path: Path, without: str) -> None:
    with gateway(tmp_path, PYTHONPATH=without) as running:
        call(running, "one", ("traceparent", f"00-{'7' * 32}-{'6' * 16}-01"))


def test_without_the_extra_traces_are_refused(tmp_path: Path, without: str) -> None:
    assert refusal(tmp_path, traced(tmp_path, "http://127.0.0.1:4317"), PYTHONPATH=without) == (
        "jobworker gateway: tracing.endpoint: needs OpenTelemetry, which is not installed here; "
        "pip install 'jobworker[otel]', or leave it out\n"
    )


def test_the_doctor_says_so_too(tmp_path: Path, without: str) -> None:
    file = tmp_path / "settings.json"
    schema.write(traced(tmp_path, "http://127.0.0.1:4317"), str(file))
    command = [sys.executable, "-m", "jobworker.gateway", "--settings", str(file), "--check-as", str(os.getuid())]

    def found(**environment: str) -> list[str]:
        done = subprocess.run(command, env=environment, capture_output=True, check=True)
        return [each["check"] for each in json.loads(done.stdout)["findings"] if each["level"] == "FAIL"]

    assert (found(), found(PYTHONPATH=without)) == ([], ["tracing.endpoint"])


def test_config_check_says_so_too(tmp_path: Path, without: str) -> None:
    files = certs.dev_pki().files("server")
    file = tmp_path / "agent.yaml"
    file.write_text(
        f"state_dir: {tmp_path}\nlisten: 127.0.0.1:0\n"
        f"tls: {{ca: {files.ca}, cert: {files.cert}, key: {files.key}}}\n"
        "tracing:\n  endpoint: http://127.0.0.1:4317\n"
    )
    command = [sys.executable, "-m", "jobworker.cli.worker_agent", "config", "check", str(file)]

    def check(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert check().stdout == "the configuration is good\n"
    refused = check(PYTHONPATH=without)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"{file}:5: tracing.endpoint: needs OpenTelemetry")

"""Every call of the contract, as every kind of peer, over real TLS against a real gateway."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import certs, gateway
from support.access import METHODS, NO_TLS, NOBODY, READ, ROLE, outcome, word, writes

# These fail at the handshake, the others at the gate.
BY_TLS = {
    *("expired", "not_yet_valid", "foreign_ca", "self_signed", "signed_by_leaf"),
    *("wrong_usage", "critical_role"),
}
ODD = certs.odd_clients()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateway.Gateway]:
    with gateway.gateway(tmp_path_factory.mktemp("gateway")) as started:
        yield started


Matrix = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def matrix(printout: list[str]) -> Iterator[Matrix]:
    """What became of each call by each kind of caller; printed at the end."""
    found: Matrix = {}
    yield found
    kinds = dict.fromkeys(kind for kind, _ in found)
    rows = [["", *(method.rpartition(".")[2].removeprefix("JobWorkerService/") for method in METHODS)]]
    rows += [[kind, *(found.get((kind, method), "") for method in METHODS)] for kind in kinds]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    printout.extend("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, certs.Files]:
    directory = tmp_path_factory.mktemp("odd")
    return {name: pair.save(directory, name) for name, pair in ODD.items()}


@pytest.mark.parametrize("name", ["reader", "writer"])
@pytest.mark.parametrize("method", METHODS)
def test_roles(running: gateway.Gateway, matrix: Matrix, method: str, name: str) -> None:
    with running.channel(name=name) as channel:
        error = outcome(channel, method)
    matrix[name, method] = word(error)
    if name == "writer" or not writes(method):
        assert matrix[name, method] == READ
    else:
        assert matrix[name, method] == ROLE
        assert "WRITER" in error.details()


@pytest.mark.parametrize("kind", sorted(ODD))
@pytest.mark.parametrize("method", [*METHODS, "/x.Y/Z"])
def test_odd_certificates(
    running: gateway.Gateway, matrix: Matrix, odd_files: dict[str, certs.Files], method: str, kind: str
) -> None:
    with running.channel(odd_files[kind]) as channel:
        error = outcome(channel, method)
    matrix[kind, method] = word(error)
    if kind in BY_TLS:
        assert matrix[kind, method] == NO_TLS
    else:
        assert matrix[kind, method] == NOBODY
        assert "certificate" in error.details()


@pytest.mark.parametrize("method", METHODS)
def test_without_a_certificate(running: gateway.Gateway, matrix: Matrix, method: str) -> None:
    credentials = gateway.credentials(certs.dev_pki().files("writer"), certificate=False)
    with grpc.secure_channel(running.address, credentials) as channel:
        matrix["no certificate", method] = word(outcome(channel, method))
    assert matrix["no certificate", method] == NO_TLS


@pytest.mark.parametrize("method", METHODS)
def test_without_tls(running: gateway.Gateway, matrix: Matrix, method: str) -> None:
    with grpc.insecure_channel(running.address) as channel:
        matrix["no TLS", method] = word(outcome(channel, method))
    assert matrix["no TLS", method] == NO_TLS


FORGED = (
    ("role", "WRITER"),
    ("x-role", "WRITER"),
    ("authorization", "Bearer WRITER"),
    ("x-forwarded-client-cert", "URI=spiffe://dev.jobworker.internal/user/writer"),
    ("1.3.6.1.4.1.32473.1.1", "WRITER"),
    ("ssl_tls_version", "TLSv1.3"),
    ("x509_pem_cert", certs.dev_pki().pair("writer").cert_pem.hex()),
)


@pytest.mark.parametrize("method", [method for method in METHODS if writes(method)])
def test_a_role_in_the_metadata_is_nothing(running: gateway.Gateway, method: str) -> None:
    with running.channel(name="reader") as channel:
        assert gateway.code(outcome(channel, method, FORGED)) == "PERMISSION_DENIED"


@pytest.mark.parametrize("name", ["reader", "writer"])
@pytest.mark.parametrize(
    "method",
    [
        "/x.Y/Z",
        "/jobworker.api.v1.JobWorkerService/start",
        "/jobworker.api.v1.JobWorkerService/Nope",
        "/jobworker.api.v1.JobWorkerService//Start",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/" + "x" * 4000,
    ],
)
def test_what_is_no_call_is_denied(running: gateway.Gateway, method: str, name: str) -> None:
    with running.channel(name=name) as channel:
        error = outcome(channel, method)
    assert (gateway.code(error), gateway.reason(error)) == ("PERMISSION_DENIED", "PERMISSION_DENIED")


def test_a_reader_is_denied_before_the_request_is_looked_at(running: gateway.Gateway) -> None:
    """Not even one that never comes: the client below sends none."""
    with running.channel(name="reader") as channel:
        call: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(METHODS[0])
        with gateway.silence() as nothing, pytest.raises(grpc.RpcError) as caught:
            call(nothing, timeout=30)
    assert gateway.code(caught.value) == "PERMISSION_DENIED"


def test_every_decision_is_logged(running: gateway.Gateway, odd_files: dict[str, certs.Files]) -> None:
    start, unknown = METHODS[0], "/audit.Me/Please"
    secret = pb.StartRequest(command="", args=["s3cret"], env={"A": "s3cret"}).SerializeToString()
    with (
        running.channel() as writer,
        running.channel(name="reader") as reader,
        running.channel(odd_files["no_role"]) as odd,
    ):
        for channel in (writer, reader, odd):
            outcome(channel, start, data=secret)
        outcome(odd, unknown)
        outcome(reader, unknown)
    wrote, read, nobody = running.calls(start)[-3:]
    assert [entry["code"] for entry in (wrote, read, nobody)] == [
        "INVALID_ARGUMENT",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
    ]
    assert (wrote["principal"], read["principal"], nobody["principal"]) == (
        "spiffe://dev.jobworker.internal/user/writer",
        "spiffe://dev.jobworker.internal/user/reader",
        "",
    )
    assert int(wrote["serial"], 16) == certs.dev_pki().pair("writer").certificate.serial_number
    assert [entry["code"] for entry in running.calls(unknown)] == ["UNAUTHENTICATED", "PERMISSION_DENIED"]
    assert all(entry["peer"].startswith("ipv4:127.0.0.1:") and entry["ms"] >= 0 for entry in (wrote, read, nobody))
    assert "s3cret" not in running.log()

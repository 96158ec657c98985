"""Each way in which a connection can fail, with real servers: grpc refuses it, and the client knows why."""

from __future__ import annotations

import dataclasses
import socket
import ssl
from concurrent import futures
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from jobworker.client import tls, tls_probe
from jobworker.client.endpoint import Endpoint
from jobworker.errors import TlsProblem
from support import certs
from support.certs import Files, Recipe
from support.ports import closed_address
from support.tls_servers import SERVER, client_files, grpc_server, server_files, serving, tls_server

HOUR = timedelta(hours=1)


def endpoint(addr: str, files: Files | None = None, server_name: str = "") -> Endpoint:
    files = files or certs.dev_pki().files("writer")
    return Endpoint(addr, files.ca, files.cert, files.key, server_name)


def outcome(channel: grpc.Channel) -> grpc.StatusCode:
    method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/any/method")
    with pytest.raises(grpc.RpcError) as caught:
        method(b"", timeout=10)
    return caught.value.code()


def explain(target: Endpoint) -> str:
    """Fail as a client does, then ask why."""
    options = [("grpc.ssl_target_name_override", target.server_name)] if target.server_name else []
    with grpc.secure_channel(target.addr, tls.credentials(target), options) as channel:
        assert outcome(channel) is grpc.StatusCode.UNAVAILABLE
    problem = tls.diagnose(target, seconds=5)
    assert problem, "the cause was not found"
    text = str(problem)
    assert "\n" not in text
    assert problem.fix
    return text


def test_good_connection_has_no_problem() -> None:
    target_files = certs.dev_pki().files("writer")
    tls.preflight(endpoint("127.0.0.1:1", target_files))
    with grpc_server() as addr:
        assert tls.diagnose(endpoint(addr)) is None
        assert tls.diagnose(endpoint(addr, server_name="localhost")) is None


def test_credentials_reach_a_server_that_speaks_only_tls13() -> None:
    versions: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = certs.dev_pki().files("server")
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])

    def talk(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            versions.append(secured.version())

    with serving(talk) as addr, grpc.secure_channel(addr, tls.credentials(endpoint(addr))) as channel:
        outcome(channel)
    assert set(versions) == {"TLSv1.3"}


@pytest.mark.parametrize("suite", ["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-CHACHA20-POLY1305", "ALL"])
def test_server_with_tls12_only(suite: str) -> None:
    def configure(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(suite)

    with tls_server(certs.dev_pki().files("server"), configure) as addr:
        assert f"{addr} does not speak TLS 1.3" in explain(endpoint(addr))


def test_nobody_listens() -> None:
    with closed_address() as addr:
        assert f"nobody listens at {addr}" in explain(endpoint(addr))


def test_unknown_host() -> None:
    assert "the host nowhere.invalid is not known" in explain(endpoint("nowhere.invalid:7443"))


def test_server_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        addr = f"127.0.0.1:{listener.getsockname()[1]}"
        problem = tls.diagnose(endpoint(addr), seconds=0.2)
    assert "does not answer a TLS handshake" in str(problem)


def test_plain_text_grpc_server() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    addr = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        assert f"{addr} does not speak TLS;" in explain(endpoint(addr))
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(64)])
def test_other_plain_text_servers(greeting: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(greeting)
        connection.recv(65_536)

    with serving(talk) as addr:
        assert f"{addr} does not speak TLS;" in explain(endpoint(addr))


def test_server_that_hangs_up() -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65_536)

    with serving(talk) as addr:
        assert f"{addr} broke off the TLS handshake" in explain(endpoint(addr))


def test_tls_server_without_http2() -> None:
    with tls_server(
        certs.dev_pki().files("server"), lambda context: context.set_alpn_protocols(["http/1.1"])
    ) as addr:
        assert f"{addr} speaks TLS, but not gRPC" in explain(endpoint(addr))


def test_wrong_server_name_says_which_are_right() -> None:
    with grpc_server() as addr:
        text = explain(endpoint(addr, server_name="build7.example.org"))
    assert "not for build7.example.org" in text
    assert "localhost" in text
    assert "127.0.0.1" in text


def test_wrong_server_address(tmp_path: Path) -> None:
    files = server_files(tmp_path, dataclasses.replace(SERVER, hosts=("agent.example.org",)))
    with grpc_server(files) as addr:
        assert "is for agent.example.org, not for 127.0.0.1" in explain(endpoint(addr))


def test_expired_server_certificate(tmp_path: Path) -> None:
    files = server_files(tmp_path, dataclasses.replace(SERVER, begin=-2 * HOUR, end=-HOUR))
    with grpc_server(files) as addr:
        text = explain(endpoint(addr))
    assert f"the server certificate of {addr} expired on 2" in text


def test_server_certificate_of_the_future(tmp_path: Path) -> None:
    files = server_files(tmp_path, dataclasses.replace(SERVER, begin=HOUR, end=2 * HOUR))
    with grpc_server(files) as addr:
        assert f"the server certificate of {addr} is not yet valid" in explain(endpoint(addr))


@pytest.mark.parametrize("issuer", ["foreign", "itself"])
def test_server_certificate_of_an_unknown_ca(tmp_path: Path, issuer: str) -> None:
    signer = certs.foreign_ca() if issuer == "foreign" else None
    files = certs.make(SERVER, signer).save(tmp_path, "odd-server")
    with grpc_server(files) as addr:
        text = explain(endpoint(addr))
    assert "which is not the CA in" in text
    assert "--ca" in text


def test_hostile_server_certificate_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    hostile = certs.make(Recipe("\x1b[2J\r\nok", uris=(), usage=None, roles=(), key="foreign4096", ca=True))
    names = tuple(f"a{number}\x1b]0;owned\x07.test" for number in range(1000))
    recipe = dataclasses.replace(SERVER, hosts=names)
    with grpc_server(certs.make(recipe, hostile).save(tmp_path, "hostile")) as addr:
        assert explain(endpoint(addr)).isprintable()
    with grpc_server(server_files(tmp_path, recipe)) as addr:
        text = explain(endpoint(addr))
    assert text.isprintable()
    assert len(text) < 600


def test_client_certificate_on_the_server(tmp_path: Path) -> None:
    files = server_files(tmp_path, Recipe(hosts=("127.0.0.1",)))
    with grpc_server(files) as addr:
        assert "give the agent a certificate made for servers" in explain(endpoint(addr))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("expired", "expired on 2"),
        ("not_yet_valid", "is not yet valid"),
        ("wrong_usage", "lacks clientAuth"),
        ("critical_role", "critical extension"),
    ],
)
def test_client_certificate_that_no_server_takes(tmp_path: Path, kind: str, expected: str) -> None:
    files = certs.odd_clients()[kind].save(tmp_path, kind)
    with grpc_server() as addr:
        text = explain(endpoint(addr, files))
    assert f"the client certificate {files.cert}" in text
    assert expected in text


def test_client_certificate_of_a_foreign_ca_and_grpc_server(tmp_path: Path) -> None:
    files = client_files(tmp_path, Recipe(), certs.foreign_ca())
    with grpc_server() as addr:
        text = explain(endpoint(addr, files))
    assert f"{addr} ended the connection on seeing the client certificate {files.cert}" in text
    assert "not the CA in" in text
    assert "use a certificate from the server's CA" in text


def test_client_certificate_of_a_foreign_ca_and_openssl_server(tmp_path: Path) -> None:
    files = client_files(tmp_path, Recipe(), certs.foreign_ca())
    with tls_server(certs.dev_pki().files("server")) as addr:
        assert "refuses the client certificate" in explain(endpoint(addr, files))


def test_server_that_trusts_another_ca(tmp_path: Path) -> None:
    """Seen from the client all is well: only the server can know."""
    other = certs.make(Recipe("other", uris=(), usage=None, roles=(), ca=True)).save(tmp_path, "other")
    files = dataclasses.replace(certs.dev_pki().files("server"), ca=other.cert)
    with grpc_server(files) as addr:
        assert "the server's log says why" in explain(endpoint(addr))
    with tls_server(files) as addr:
        assert "it does not trust that CA" in explain(endpoint(addr))


def probe_problem(target: Endpoint) -> str:
    """What the probe says on its own, where the local files would give the cause away before."""
    with pytest.raises(TlsProblem) as caught:
        tls_probe.probe(target, seconds=5)
    return str(caught.value)


def test_server_that_asks_and_gets_no_certificate() -> None:
    with tls_server(certs.dev_pki().files("server")) as addr:
        text = probe_problem(dataclasses.replace(endpoint(addr), cert="", key=""))
    assert f"{addr} wants a client certificate; give one with --cert and --key" in text


def test_client_certificate_that_only_the_server_finds_expired(tmp_path: Path) -> None:
    files = client_files(tmp_path, Recipe(begin=-2 * HOUR, end=-HOUR))
    with tls_server(certs.dev_pki().files("server")) as addr:
        assert "it finds it expired; compare its clock" in probe_problem(endpoint(addr, files))


def test_key_of_another_certificate() -> None:
    files = dataclasses.replace(certs.dev_pki().files("writer"), key=certs.dev_pki().path("reader.key"))
    with grpc_server() as addr:
        assert f"{files.key} does not belong to the certificate {files.cert}" in explain(endpoint(addr, files))


@pytest.mark.parametrize(
    "name", [".example.org", "a" * 64, "a." * 150 + "a", "b\u00fccher.example.org", "a\0", "a b"]
)
def test_what_is_no_server_name(name: str) -> None:
    with grpc_server() as addr:
        problem = tls.diagnose(endpoint(addr, server_name=name))
    assert str(problem).endswith("is not a server's name; correct --server-name")

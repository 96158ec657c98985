"""A fleet's certificates in real handshakes: the chain is sent along, and name constraints hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types

from jobworker.identity import DEFAULT_ROLE_OID, Role
from jobworker_pki import profiles
from jobworker_pki.profiles import Profile
from support import certs, gateway
from support.certs import Files
from support.pki import Pki, copied, host_profile

HOST, HOUR = "build7.example.org", timedelta(hours=1)


def user(trust_domain: str) -> Profile:
    return profiles.user("alice.smith", Role.READER, trust_domain, DEFAULT_ROLE_OID, timedelta(days=1))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return copied(tmp_path_factory.mktemp("pki"))


def files(pki: Pki, file: str, profile: Profile) -> Files:
    """A certificate of this PKI, with its chain, and the pool's key beside it."""
    cert = pki.leaf(file, profile, HOUR)
    key = cert.replace(".pem", ".key")
    with open(os.open(key, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as stream:
        stream.write(certs.Pair(pki.certificate(file), certs.key()).key_pem)
    return Files(pki.path("ca.pem"), cert, key)


@pytest.fixture(scope="module")
def running(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateway.Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    server = files(pki, f"hosts/{HOST}.pem", host_profile(HOST))
    with gateway.gateway(directory, gateway.settings(str(directory), server)) as started:
        yield started


def check(running: gateway.Gateway, client: Files, host: str = HOST) -> str:
    """The answer to a health check; the status's name if it is refused."""
    options = [("grpc.ssl_target_name_override", host)]
    with grpc.secure_channel(running.address, gateway.credentials(client), options) as channel:
        request = health_pb2.HealthCheckRequest()
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=gateway.DEADLINE)
        except grpc.RpcError as error:
            return gateway.code(error)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def test_a_user_of_the_intermediate_is_let_in(running: gateway.Gateway, pki: Pki) -> None:
    """Also one whose name has a dot in it, which is no host name."""
    client = files(pki, "users/alice.smith.pem", user("example.org"))
    assert check(running, client) in ("SERVING", "NOT_SERVING")


def test_the_intermediate_cannot_vouch_for_another_trust_domain(running: gateway.Gateway, pki: Pki) -> None:
    client = files(pki, "users/rogue.pem", user("example.net"))
    assert check(running, client) == "UNAVAILABLE"


def test_a_server_with_a_name_and_an_address_is_believed_by_both(pki: Pki, tmp_path: Path) -> None:
    """The PKI has a network: constraints on addresses would have gRPC refuse the certificate whole."""
    server = files(pki, "hosts/address.pem", host_profile(HOST, "10.0.0.7"))
    client = files(pki, "users/carol.pem", user("example.org"))
    with gateway.gateway(tmp_path, gateway.settings(str(tmp_path), server)) as started:
        for host in (HOST, "10.0.0.7"):
            assert check(started, client, host) in ("SERVING", "NOT_SERVING")
        assert check(started, client, "10.0.0.8") == "UNAVAILABLE"


def test_a_server_outside_the_domains_is_not_believed(pki: Pki, tmp_path: Path) -> None:
    server = files(pki, "hosts/rogue.pem", host_profile(HOST, "www.example.net"))
    client = files(pki, "users/bob.pem", user("example.org"))
    with gateway.gateway(tmp_path, gateway.settings(str(tmp_path), server)) as started:
        assert check(started, client) == "UNAVAILABLE"


def test_without_the_chain_the_root_alone_does_not_do(running: gateway.Gateway, pki: Pki) -> None:
    client = files(pki, "users/bare.pem", user("example.org"))
    Path(client.cert).write_bytes(certs.Pair(pki.certificate("users/bare.pem"), certs.key()).cert_pem)
    assert check(running, client) == "UNAVAILABLE"

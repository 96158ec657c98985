"""Certificates that the settings want, or do not want, over TLS against a real gateway."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client import connect
from jobworker.client.endpoint import Endpoint
from jobworker.client.failures import CallFailed
from jobworker.settings.schema import CertificateSettings
from support import certs, gateway
from support.certs import Recipe, make

CA = certs.dev_pki().pair("ca")
DAYS_MS = 86_400_000
HOST = Recipe("localhost", uris=(), hosts=("localhost", "127.0.0.1"), usage=certs.SERVER_AUTH, roles=())
MODERN = CertificateSettings(key_types=("rsa", "ecdsa"), max_client_life_ms=90 * DAYS_MS)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateway.Gateway]:
    """A gateway whose own key is ECDSA, and whose clients' may be; none may have a certificate for long."""
    directory = tmp_path_factory.mktemp("gateway")
    own = make(replace(HOST, key="p256"), CA).save(directory, "own")
    wanted = gateway.settings(str(directory), own)
    wanted = replace(wanted, tls=replace(wanted.tls, certificates=MODERN))
    with gateway.gateway(directory, wanted) as started:
        yield started


def refused(running: gateway.Gateway, files: certs.Files) -> Any:
    """How a call with this certificate ends, which no supervisor is there to answer."""
    with running.stub(files) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.List(pb.ListRequest(), timeout=30)
    return caught.value


@pytest.mark.parametrize("key", ["p256", "rsa4096"])
def test_both_kinds_of_keys_are_let_in(running: gateway.Gateway, tmp_path: Path, key: str) -> None:
    error = refused(running, make(Recipe(key=key), CA).save(tmp_path, "client"))
    assert (gateway.code(error), gateway.reason(error)) == ("UNAVAILABLE", "AGENT_UNAVAILABLE")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(key="rsa2048"), "not RSA with 4096 bits or ECDSA with 256 bits or more"),
        (Recipe(end=timedelta(days=91)), "made for 91 days, and 90 are the most here"),
        (Recipe(key="p256", usage=None), "lacks the usage clientAuth"),
    ],
)
def test_what_the_settings_do_not_want_is_nobodys(
    running: gateway.Gateway, tmp_path: Path, recipe: Recipe, said: str
) -> None:
    error = refused(running, make(recipe, CA).save(tmp_path, "client"))
    assert (gateway.code(error), gateway.reason(error)) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    assert said in error.details()


def test_the_client_takes_such_a_key(running: gateway.Gateway, tmp_path: Path) -> None:
    """What no agent accepts it refuses by itself; this is none of that."""
    files = make(Recipe(key="p256"), CA).save(tmp_path, "client")
    endpoint = Endpoint(running.address, files.ca, files.cert, files.key)
    with connect(endpoint) as client, pytest.raises(CallFailed) as caught:
        client.stop("k7f3-9m2q-x4tz-b1cd")
    assert caught.value.reason == "AGENT_UNAVAILABLE"


@pytest.mark.parametrize(
    ("certificates", "recipe", "said"),
    [
        (CertificateSettings(), replace(HOST, key="p256"), "not RSA with 4096 bits"),
        (
            CertificateSettings(agent_usages=("1.3.6.1.5.5.7.3.1",)),
            replace(HOST, usage=None),
            "extended key usage",
        ),
        (CertificateSettings(max_agent_life_ms=DAYS_MS), replace(HOST, end=timedelta(days=2)), "made for 2"),
    ],
)
def test_the_agents_own_is_held_to_them(
    tmp_path: Path, certificates: CertificateSettings, recipe: Recipe, said: str
) -> None:
    files = make(recipe, CA).save(tmp_path, "own")
    wanted = gateway.settings(str(tmp_path), files)
    wanted = replace(wanted, tls=replace(wanted.tls, certificates=certificates))
    refusal = gateway.refusal(tmp_path, wanted)
    assert said in refusal
    assert files.cert in refusal

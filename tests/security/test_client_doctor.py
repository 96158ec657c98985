"""`worker-client doctor`: each mistake of a connection in one sentence, with real certificates and sockets."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from support import certs, scripted
from support.agent import Agent
from support.certs import Files, Recipe
from support.gateway import gateway, settings
from support.ports import closed_address
from support.tls_servers import SERVER, client_files, grpc_server, server_files, serving, tls_server

HOUR = timedelta(hours=1)


def diagnosis(*args: str, status: int, **variables: str) -> list[dict[str, Any]]:
    """What a doctor with these arguments says, as its JSON has it."""
    command = [scripted.program(), "doctor", "--format", "json", *args]
    environment = {"HOME": "/nonexistent", **variables}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (status, b""), done.stdout
    return [json.loads(line) for line in done.stdout.splitlines()]


def flags(addr: str, files: Files | None = None) -> list[str]:
    files = files or certs.dev_pki().files("writer")
    return ["--addr", addr, "--ca", files.ca, "--cert", files.cert, "--key", files.key]


def failures(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(each["check"], f"{each['told']}; {each['hint']}") for each in found if each["level"] == "fail"]


def writer(**changes: str) -> Files:
    return dataclasses.replace(certs.dev_pki().files("writer"), **changes)


Target = tuple[str, Files | None]


@contextlib.contextmanager
def nobody(_: Path) -> Iterator[Target]:
    with closed_address() as addr:
        yield addr, None


@contextlib.contextmanager
def unknown_host(_: Path) -> Iterator[Target]:
    yield "nowhere.invalid:7443", None


@contextlib.contextmanager
def plain_text(_: Path) -> Iterator[Target]:
    def talk(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        connection.recv(65_536)

    with serving(talk) as addr:
        yield addr, None


@contextlib.contextmanager
def tls12_only(_: Path) -> Iterator[Target]:
    def configure(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    with tls_server(certs.dev_pki().files("server"), configure) as addr:
        yield addr, None


@contextlib.contextmanager
def not_grpc(_: Path) -> Iterator[Target]:
    def configure(context: ssl.SSLContext) -> None:
        context.set_alpn_protocols(["http/1.1"])

    with tls_server(certs.dev_pki().files("server"), configure) as addr:
        yield addr, None


@contextlib.contextmanager
def no_agent(_: Path) -> Iterator[Target]:
    with grpc_server() as addr:
        yield addr, None


@contextlib.contextmanager
def unknown_ca(directory: Path) -> Iterator[Target]:
    with grpc_server(certs.make(SERVER, certs.foreign_ca()).save(directory, "odd-server")) as addr:
        yield addr, None


@contextlib.contextmanager
def wrong_name(directory: Path) -> Iterator[Target]:
    recipe = dataclasses.replace(SERVER, hosts=("agent.example.org",))
    with grpc_server(server_files(directory, recipe)) as addr:
        yield addr, None


@contextlib.contextmanager
def expired_server(directory: Path) -> Iterator[Target]:
    recipe = dataclasses.replace(SERVER, begin=-2 * HOUR, end=-HOUR)
    with grpc_server(server_files(directory, recipe)) as addr:
        yield addr, None


@contextlib.contextmanager
def server_of_the_future(directory: Path) -> Iterator[Target]:
    recipe = dataclasses.replace(SERVER, begin=HOUR, end=2 * HOUR)
    with grpc_server(server_files(directory, recipe)) as addr:
        yield addr, None


@contextlib.contextmanager
def foreign_client(directory: Path) -> Iterator[Target]:
    files = client_files(directory, Recipe(), certs.foreign_ca())
    with grpc_server() as addr:
        yield addr, files


@contextlib.contextmanager
def refused_client(_: Path) -> Iterator[Target]:
    """A server that trusts another CA than the one that has issued its own certificate."""
    other = certs.make(Recipe("other", uris=(), usage=None, roles=(), ca=True)).save(_, "other")
    with tls_server(dataclasses.replace(certs.dev_pki().files("server"), ca=other.cert)) as addr:
        yield addr, None


@contextlib.contextmanager
def revoked(directory: Path) -> Iterator[Target]:
    serials = directory / "revoked"
    serials.write_text(f"{certs.dev_pki().pair('writer').certificate.serial_number:x}\n")
    wanted = settings(str(directory))
    wanted = dataclasses.replace(wanted, tls=dataclasses.replace(wanted.tls, revoked=str(serials)))
    with gateway(directory, wanted) as running:
        yield running.address, None


def odd_client(kind: str) -> Callable[[Path], contextlib.AbstractContextManager[Target]]:
    @contextlib.contextmanager
    def with_it(directory: Path) -> Iterator[Target]:
        with grpc_server() as addr:
            yield addr, certs.odd_clients()[kind].save(directory, kind)

    return with_it


@contextlib.contextmanager
def key_of_another(_: Path) -> Iterator[Target]:
    with grpc_server() as addr:
        yield addr, writer(key=certs.dev_pki().path("reader.key"))


@contextlib.contextmanager
def missing_file(directory: Path) -> Iterator[Target]:
    with grpc_server() as addr:
        yield addr, writer(ca=str(directory / "missing.pem"))


@pytest.mark.parametrize(
    ("situation", "check", "told"),
    [
        (nobody, "address", "nobody listens at"),
        (unknown_host, "address", "the host nowhere.invalid is not known"),
        (plain_text, "tls", "does not speak TLS;"),
        (tls12_only, "tls", "does not speak TLS 1.3; check host and port"),
        (not_grpc, "tls", "speaks TLS, but not gRPC"),
        (no_agent, "agent", "no jobworker agent"),
        (unknown_ca, "tls", "which is not the CA in"),
        (wrong_name, "tls", "is for agent.example.org, not for 127.0.0.1; connect by one of these names"),
        (expired_server, "tls", "expired on 2"),
        (server_of_the_future, "tls", "compare the clocks"),
        (foreign_client, "tls", "use a certificate from the server's CA"),
        (refused_client, "tls", "it does not trust that CA"),
        (revoked, "agent", "the certificate is revoked; mend that, or have a new certificate issued"),
        (odd_client("expired"), "cert", "expired on 2"),
        (odd_client("not_yet_valid"), "cert", "compare the clocks"),
        (odd_client("no_role"), "cert", "carries no role, READER or WRITER"),
        (odd_client("wrong_usage"), "cert", "is not one for clients"),
        (key_of_another, "key", "does not belong to the certificate"),
        (missing_file, "ca", "missing.pem cannot be read: No such file or directory; check the path"),
    ],
)
def test_each_mistake_is_told_in_one_sentence(
    tmp_path: Path,
    situation: Callable[[Path], contextlib.AbstractContextManager[Target]],
    check: str,
    told: str,
) -> None:
    with situation(tmp_path) as (addr, files):
        found = failures(diagnosis(*flags(addr, files), status=1))
    ((where, sentence),) = found
    assert where == check
    assert told in sentence
    assert sentence.isprintable()


def test_two_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with nobody(tmp_path) as (addr, _):
        found = failures(diagnosis(*flags(addr, writer(key="/nonexistent")), status=1))
    assert [check for check, _ in found] == ["key", "address"]


def test_one_mistake_is_not_told_twice(tmp_path: Path) -> None:
    with grpc_server() as addr:
        found = failures(diagnosis(*flags(addr, writer(cert=str(tmp_path / "missing"))), status=1))
    assert [check for check, _ in found] == ["cert"]


def test_all_is_well_with_an_agent(agent: Agent) -> None:
    files = Files(*(f"{agent.pki_dir}/{name}" for name in ("ca.pem", "reader.pem", "reader.key")))
    found = diagnosis(*flags(agent.addr, files), status=0)
    levels = {each["check"]: each["level"] for each in found}
    wanted = (
        "settings",
        "ca",
        "cert",
        "key",
        "address",
        "tls",
        "agent",
        "jobs",
        "clock",
        "agent cert",
        "agent ca",
    )
    assert {check: levels.get(check) for check in wanted} == dict.fromkeys(wanted, "ok")
    assert any("with the role READER" in each["told"] for each in found)
    lines = agent.cli("doctor").stdout.decode().splitlines()
    assert len(lines) == len(found)
    assert all(line.split()[0] in ("ok", "warn") for line in lines)


def test_a_key_that_others_can_use_is_warned_of(tmp_path: Path) -> None:
    files = certs.dev_pki().pair("writer").save(tmp_path, "open")
    os.chmod(files.key, 0o644)
    with nobody(tmp_path) as (addr, _):
        found = diagnosis(*flags(addr, files), status=1)
    (key,) = (each for each in found if each["check"] == "key")
    assert (key["level"], key["hint"]) == ("warn", f"chmod 600 {files.key}")
    assert "mode 0644" in key["told"]


def test_who_says_what_is_told(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("current: lab\ncontexts: {lab: {addr: 'lab:1', ca: ca.pem, cert: c.pem}}")
    variables = {"JOBWORKER_CONFIG": str(config), "JOBWORKER_ADDR": "variable:1", "JOBWORKER_KEY": "/k"}
    told = [each["told"] for each in diagnosis("--addr", "flag.invalid:1", status=1, **variables)]
    context = f"context 'lab' of {config}"
    assert f"addr is flag.invalid:1, says --addr; JOBWORKER_ADDR, {context} does not count" in told
    assert f"ca is {tmp_path}/ca.pem, says {context}" in told
    assert "key is /k, says JOBWORKER_KEY" in told


def test_missing_and_broken_settings_are_failures(tmp_path: Path) -> None:
    ((check, sentence),) = failures(diagnosis(status=1))
    assert (check, "--addr" in sentence, "JOBWORKER_ADDR" in sentence) == ("settings", True, True)
    config = tmp_path / "config.yaml"
    config.write_text("contexts: [")
    ((check, sentence),) = failures(diagnosis(status=1, JOBWORKER_CONFIG=str(config)))
    assert (check, "is not YAML" in sentence) == ("settings", True)
    ((check, sentence),) = failures(diagnosis(*flags("nowhere"), status=1))
    assert (check, "is not HOST:PORT" in sentence) == ("settings", True)

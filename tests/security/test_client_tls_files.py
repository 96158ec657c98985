"""What the client finds wrong with its own files, before it connects to anyone."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from jobworker.client import tls
from jobworker.client.endpoint import Endpoint
from jobworker.errors import TlsProblem
from support import certs
from support.certs import Files, Recipe

HOUR = timedelta(hours=1)


def problem(files: Files) -> str:
    with pytest.raises(TlsProblem) as caught:
        tls.preflight(Endpoint("127.0.0.1:1", files.ca, files.cert, files.key))
    assert caught.value.fix
    assert "\n" not in str(caught.value)
    return str(caught.value)


def accept(files: Files) -> None:
    tls.preflight(Endpoint("127.0.0.1:1", files.ca, files.cert, files.key))


@pytest.fixture
def writer() -> Files:
    return certs.dev_pki().files("writer")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("expired", "expired on 2"),
        ("not_yet_valid", "is not yet valid: it begins on 2"),
        ("wrong_usage", "lacks clientAuth"),
        ("no_usage", "lacks clientAuth"),
        ("no_role", "carries no role"),
        ("unknown_role", "carries no role"),
        ("empty_role", "carries no role"),
        ("trailing_der", "carries no role"),
        ("critical_role", "role in a critical extension"),
        ("two_roles", "holds something that cannot be read"),
        ("no_uri", "names 0 URIs"),
        ("two_uris", "names 2 URIs"),
        ("foreign_uri", "names no user"),
    ],
)
def test_certificate_that_no_agent_takes(tmp_path: Path, kind: str, expected: str) -> None:
    files = certs.odd_clients()[kind].save(tmp_path, kind)
    text = problem(files)
    assert text.startswith(f"the client certificate {files.cert} {expected}") or expected in text
    assert files.cert in text


@pytest.mark.parametrize("kind", ["foreign_ca", "signed_by_leaf", "self_signed", "p256", "rsa2048"])
def test_what_only_the_server_can_judge_passes(tmp_path: Path, kind: str) -> None:
    accept(certs.odd_clients()[kind].save(tmp_path, kind))


def test_short_key(tmp_path: Path) -> None:
    files = certs.make(Recipe(key="rsa1024"), certs.dev_pki().pair("ca")).save(tmp_path, "short")
    assert "only 1024 bits" in problem(files)


def test_role_may_have_any_oid(tmp_path: Path) -> None:
    files = certs.make(Recipe(role_oid="1.3.6.1.4.1.99999.7"), certs.dev_pki().pair("ca")).save(tmp_path, "other")
    accept(files)


@pytest.mark.parametrize("field", ["ca", "cert", "key"])
def test_file_that_was_not_given(writer: Files, field: str) -> None:
    text = problem(dataclasses.replace(writer, **{field: ""}))
    assert "is given" in text
    assert f"--{field}" in text


@pytest.mark.parametrize("field", ["ca", "cert", "key"])
def test_file_that_cannot_be_read(writer: Files, tmp_path: Path, field: str) -> None:
    missing = dataclasses.replace(writer, **{field: str(tmp_path / "missing")})
    assert f"{tmp_path}/missing cannot be read: No such file or directory" in problem(missing)
    assert "cannot be read: Is a directory" in problem(dataclasses.replace(writer, **{field: str(tmp_path)}))


@pytest.mark.parametrize("field", ["ca", "cert", "key"])
def test_file_that_is_not_pem(writer: Files, tmp_path: Path, field: str) -> None:
    (tmp_path / "garbage").write_bytes(b"\x00garbage" * 100)
    garbage = dataclasses.replace(writer, **{field: str(tmp_path / "garbage")})
    assert f"{tmp_path}/garbage holds no" in problem(garbage)


def test_certificate_and_key_mixed_up(writer: Files) -> None:
    assert "holds a private key" in problem(dataclasses.replace(writer, cert=writer.key))
    assert "holds a certificate" in problem(dataclasses.replace(writer, key=writer.cert))


def test_key_of_another_certificate(writer: Files) -> None:
    text = problem(dataclasses.replace(writer, key=certs.dev_pki().path("reader.key")))
    assert "reader.key does not belong to the certificate" in text


def test_key_of_another_kind(writer: Files, tmp_path: Path) -> None:
    other = certs.make(Recipe(key="p256")).save(tmp_path, "p256")
    assert "does not belong" in problem(dataclasses.replace(writer, key=other.key))


def test_encrypted_key(writer: Files, tmp_path: Path) -> None:
    locked = str(tmp_path / "locked.key")
    command = ["openssl", "pkey", "-in", writer.key, "-aes256", "-passout", "pass:x", "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    text = problem(dataclasses.replace(writer, key=locked))
    assert f"the private key {locked} is encrypted" in text
    assert "openssl pkey" in text


def test_expired_ca(writer: Files, tmp_path: Path) -> None:
    ca = Recipe("old", uris=(), usage=None, roles=(), ca=True, begin=-2 * HOUR, end=-HOUR)
    old = certs.make(ca).save(tmp_path, "old").cert
    assert f"the CA certificate {old} expired" in problem(dataclasses.replace(writer, ca=old))
    both = tmp_path / "both.pem"
    both.write_bytes(Path(old).read_bytes() + Path(writer.ca).read_bytes())
    accept(dataclasses.replace(writer, ca=str(both)))


def test_importing_tls_costs_neither_grpc_nor_cryptography() -> None:
    code = "import sys, jobworker.client.tls; sys.exit(bool({'grpc', 'cryptography', 'ssl'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("words", ["from jobworker import tls13; tls13.require()", "import jobworker.client"])
def test_grpc_that_was_loaded_before_is_refused(words: str) -> None:
    result = without_grpcs_variables(f"import grpc; {words}")
    assert result.returncode == 1
    assert "RuntimeError: grpc was imported before" in result.stderr
    assert "; import jobworker.client, or call that, before anything that imports grpc" in result.stderr


@pytest.mark.parametrize("words", ["from jobworker import tls13; tls13.require()", "import jobworker.client"])
def test_grpc_that_others_load_between_is_as_it_must_be(writer: Files, words: str) -> None:
    files = [writer.ca, writer.cert, writer.key]
    made = f"from jobworker.client import Endpoint, connect; connect(Endpoint('127.0.0.1:1', *{files})).close()"
    result = without_grpcs_variables(f"{words}; import grpc; {made}")
    assert (result.returncode, result.stderr) == (0, "")


def without_grpcs_variables(code: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)

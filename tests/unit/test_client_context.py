"""Where the settings of a connection come from, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobworker.client import context
from jobworker.client.endpoint import Endpoint
from jobworker.client.failures import SettingsMissing
from jobworker.errors import InvalidField
from support import document

FLAGS = {"addr": "flag:1", "ca": "flag.ca", "cert": "flag.cert", "key": "flag.key"}
VARIABLES = {
    "JOBWORKER_ADDR": "env:1",
    "JOBWORKER_CA": "env.ca",
    "JOBWORKER_CERT": "env.cert",
    "JOBWORKER_KEY": "env.key",
    "JOBWORKER_SERVER_NAME": "env-name",
}
CONTEXTS = """
current: lab
contexts:
  lab: {addr: "lab:1", ca: ca.pem, cert: sub/me.pem, key: /abs/me.key}
  staging: {addr: "staging:1", ca: s.ca, cert: s.cert, key: s.key, server_name: agent}
  half: {addr: "half:1"}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(CONTEXTS)
    return str(path)


def test_flags_stand_above_everything(file: str) -> None:
    found = context.endpoint(FLAGS | {"server_name": "n"}, VARIABLES | {"JOBWORKER_CONFIG": file}, "staging")
    assert found == Endpoint("flag:1", "flag.ca", "flag.cert", "flag.key", "n")


def test_the_environment_stands_above_the_current_context(file: str) -> None:
    variables = {"JOBWORKER_ADDR": "env:1", "JOBWORKER_CONFIG": file}
    folder = os.path.dirname(file)
    found = context.endpoint({"ca": "flag.ca", "cert": None}, variables)
    assert found == Endpoint("env:1", "flag.ca", f"{folder}/sub/me.pem", "/abs/me.key")


def test_the_environment_alone_is_enough() -> None:
    assert context.endpoint({}, VARIABLES | {"JOBWORKER_CONFIG": "/nonexistent"}) == Endpoint(
        "env:1", "env.ca", "env.cert", "env.key", "env-name"
    )


def test_a_context_asked_for_by_name_stands_above_the_environment(file: str) -> None:
    found = context.endpoint({}, VARIABLES | {"JOBWORKER_CONFIG": file}, "staging")
    assert (found.addr, found.server_name) == ("staging:1", "agent")
    found = context.endpoint({}, VARIABLES | {"JOBWORKER_CONFIG": file}, "half")
    assert (found.addr, found.ca) == ("half:1", "env.ca")


def test_paths_with_a_tilde_are_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    path = tmp_path / "c.yaml"
    path.write_text("current: a\ncontexts: {a: {addr: 'a:1', ca: ~/ca.pem, cert: c, key: k}}")
    assert context.endpoint({}, {"JOBWORKER_CONFIG": str(path)}).ca == "/home/someone/ca.pem"


def test_the_default_file_is_in_the_users_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    expected = "/home/someone/.config/jobworker/config.yaml"
    assert context.config_path({}) == expected
    assert context.config_path({"XDG_CONFIG_HOME": "relative"}) == expected
    assert context.config_path({"XDG_CONFIG_HOME": "/xdg"}) == "/xdg/jobworker/config.yaml"
    assert context.config_path({"XDG_CONFIG_HOME": "/xdg", "JOBWORKER_CONFIG": "/f"}) == "/f"


def test_what_is_missing_is_named_in_all_three_ways(tmp_path: Path) -> None:
    with pytest.raises(SettingsMissing) as caught:
        context.endpoint({"addr": "a:1", "cert": "c"}, {"XDG_CONFIG_HOME": str(tmp_path)})
    assert caught.value.names == ("ca", "key")
    told = str(caught.value)
    for way in ("--ca", "--key", "JOBWORKER_CA", "JOBWORKER_KEY", f"{tmp_path}/jobworker/config.yaml"):
        assert way in told
    assert "--addr" not in told


def test_a_context_may_leave_something_open(file: str) -> None:
    with pytest.raises(SettingsMissing, match="'half'") as caught:
        context.endpoint({}, {"JOBWORKER_CONFIG": file}, "half")
    assert caught.value.names == ("ca", "cert", "key")


def test_an_unknown_context_is_answered_with_the_known_ones(file: str) -> None:
    with pytest.raises(InvalidField, match=r"'prod'.*lab, staging, half"):
        context.endpoint(FLAGS, {"JOBWORKER_CONFIG": file}, "prod")


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    path = str(tmp_path / "none.yaml")
    with pytest.raises(InvalidField, match="does not exist"):
        context.endpoint({}, {"JOBWORKER_CONFIG": path})
    with pytest.raises(InvalidField, match="does not exist"):
        context.endpoint(FLAGS, {"XDG_CONFIG_HOME": str(tmp_path)}, "lab")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("contexts: {a: {adr: x}}", r"contexts\.a\.adr"),
        ("curent: a", "curent"),
        ("contexts: [a]", "contexts: is not a mapping"),
        ("contexts: {a: b}", r"contexts\.a: is not a mapping"),
        ("- a", "is not a mapping"),
        ("contexts: {a: {addr: 7443}}", r"contexts\.a\.addr: 7443 is not text"),
        ("current: 1", "current: 1 is not text"),
        ("current: a", "'a' is not among them; there are: none"),
        ("a: [", "is not YAML"),
        ("a: 2001-99-99", "is not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("[" * 100_000, "is not YAML"),
        ("\x00", "is not YAML"),
        ("#" * 2_000_000, "is larger than"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InvalidField, match=told) as caught:
        context.endpoint({}, {"JOBWORKER_CONFIG": str(path)})
    assert str(path) in str(caught.value)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidField, match="cannot be read: Is a directory"):
        context.endpoint({}, {"JOBWORKER_CONFIG": str(tmp_path)})


@pytest.mark.parametrize(
    ("addr", "host", "port"), [("h:1", "h", 1), ("10.0.0.1:7443", "10.0.0.1", 7443), ("[::1]:5", "::1", 5)]
)
def test_an_address_has_a_host_and_a_port(addr: str, host: str, port: int) -> None:
    endpoint = context.endpoint(FLAGS | {"addr": addr}, {})
    assert (endpoint.host, endpoint.port) == (host, port)


def test_a_wrong_address_is_refused_wherever_it_comes_from(file: str) -> None:
    with pytest.raises(InvalidField, match="HOST:PORT"):
        context.endpoint(FLAGS | {"addr": "nohost"}, {"JOBWORKER_CONFIG": file})


def test_the_file_that_the_page_shows_is_one(tmp_path: Path) -> None:
    (shown,) = document.blocks(document.all_pages()["docs/concepts.md"], "yaml")
    (tmp_path / "config.yaml").write_text(shown)
    found = context.endpoint({}, {"JOBWORKER_CONFIG": str(tmp_path / "config.yaml")})
    assert (found.addr, found.ca) == ("staging.example.org:7443", str(tmp_path / "certs" / "ca.pem"))
    assert found.server_name == "agent"


def test_a_slip_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("current: lab\ncontexts: {lab: [}\n")
    with pytest.raises(InvalidField, match=r"config\.yaml: is not YAML: line 2: expected the node content"):
        context.endpoint({}, {"JOBWORKER_CONFIG": str(tmp_path / "config.yaml")})

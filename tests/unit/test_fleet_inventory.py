"""Inventories: how they are read, and where they say that agents are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jobworker.cli.fleet import sources
from jobworker.cli.fleet.inventory import Inventory, of_list
from jobworker.cli.fleet.targets import Wanted, choose, targets
from jobworker.client import Endpoint
from jobworker.errors import InvalidField

LISTED = {
    "_meta": {
        "hostvars": {
            "web1": {"ansible_host": "10.0.0.1", "pki_passphrase": "secret"},
            "web2": {"agent_address": "web2.example.org:7000", "agent_server_name": "web2"},
            "db1": {"ansible_host": "fd00::1", "agent_listen": "[::]:7001"},
        }
    },
    "all": {"children": ["ungrouped", "site"]},
    "site": {"children": ["db", "web"]},
    "web": {"hosts": ["web2", "web1"]},
    "db": {"hosts": ["db1"], "children": ["site"]},
    "ungrouped": {"hosts": ["plain.example.org"]},
}
BASE = Endpoint("0.0.0.0:1", "ca.pem", "me.pem", "me.key", "somebody")


@pytest.fixture
def inventory() -> Inventory:
    return of_list("hosts.json", LISTED)


def test_hosts_are_in_the_inventory_s_order_and_each_once(inventory: Inventory) -> None:
    assert inventory.hosts == ("plain.example.org", "db1", "web2", "web1")
    assert inventory.groups["site"] == ("db1", "web2", "web1")
    assert list(inventory.groups) == ["all", "ungrouped", "site", "db", "web"]


def test_hosts_of_nearer_groups_come_before_those_of_farther_ones() -> None:
    top = {"hosts": ["b", "a"], "children": ["x", "y"]}
    listed = {"top": top, "x": {"children": ["z"]}, "y": {"hosts": ["d", "a"]}, "z": {"hosts": ["c"]}}
    assert of_list("hosts.json", listed).groups["top"] == ("b", "a", "d", "c")


def test_no_other_variable_is_kept(inventory: Inventory) -> None:
    assert inventory.variables["web1"] == {"ansible_host": "10.0.0.1"}
    assert inventory.variables["plain.example.org"] == {}


def test_agents_are_where_the_collection_has_them(inventory: Inventory) -> None:
    found = {target.name: target.endpoint for target in targets(inventory, inventory.hosts, BASE)}
    assert {name: endpoint.addr for name, endpoint in found.items()} == {
        "plain.example.org": "plain.example.org:7443",
        "db1": "[fd00::1]:7001",
        "web2": "web2.example.org:7000",
        "web1": "10.0.0.1:7443",
    }
    assert {name: endpoint.server_name for name, endpoint in found.items() if endpoint.server_name} == {
        "web2": "web2"
    }
    assert all(
        (endpoint.ca, endpoint.cert, endpoint.key) == (BASE.ca, BASE.cert, BASE.key) for endpoint in found.values()
    )


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"agent_address": "10.0.0.1"}, "agent_address of web1: '10.0.0.1' is not HOST:PORT"),
        ({"agent_address": 7443}, "agent_address of web1: 7443 is not text"),
        ({"agent_listen": "all"}, "agent_listen of web1: 'all' is not ADDRESS:PORT"),
        ({"ansible_host": "{{ lan }}.1"}, "ansible_host of web1: is a template"),
        ({"ansible_host": "unix:/run/x"}, "the address of web1: 'unix:/run/x:7443' is not HOST:PORT"),
    ],
)
def test_a_wrong_variable_is_named_with_its_host(variables: dict[str, Any], told: str) -> None:
    wrong = of_list("hosts.json", {"_meta": {"hostvars": {"web1": variables}}})
    with pytest.raises(InvalidField) as raised:
        list(targets(wrong, wrong.hosts, BASE))
    assert str(raised.value).startswith(told)


@pytest.mark.parametrize(
    ("wanted", "hosts"),
    [
        (Wanted(("web",), (), None), ("web2", "web1")),
        (Wanted(("web",), ("db1",), None), ("db1", "web2", "web1")),
        (Wanted((), ("web1",), None), ("web1",)),
        (Wanted((), (), "web*:!web2"), ("web1",)),
        (Wanted(("site",), (), "!web2"), ("db1", "web1")),
    ],
)
def test_groups_and_hosts_add_up_and_a_limit_takes_away(
    inventory: Inventory, wanted: Wanted, hosts: tuple[str, ...]
) -> None:
    assert choose(inventory, wanted).hosts == hosts


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (
            Wanted(("wbe",), (), None),
            "--group: 'wbe' is not in the inventory; there are: all, ungrouped, site, db, web",
        ),
        (Wanted((), ("web9",), None), "--host: 'web9' is not in the inventory; there are: plain.example.org, db1"),
        (Wanted(("web",), (), ""), "--limit: '' names no host; for example web*"),
        (Wanted(("web",), (), "plain*"), "--limit: leaves no host at all"),
    ],
)
def test_hosts_that_are_not_there_are_refused(inventory: Inventory, wanted: Wanted, told: str) -> None:
    with pytest.raises(InvalidField) as raised:
        choose(inventory, wanted)
    assert str(raised.value).startswith(told)


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ([], "is not an object"),
        ({"_meta": {"hostvars": []}}, "_meta.hostvars: is not an object"),
        ({"_meta": {}, "web": ["a"]}, "web: is not an object"),
        ({"_meta": {}, "web": {"hosts": "a"}}, "web.hosts: is not a list of names"),
        ({"_meta": {}, "web": {"hosts": [1]}}, "web.hosts: is not a list of names"),
        ({"_meta": {}, "all": {"children": ["web"]}}, "holds no hosts"),
    ],
)
def test_another_form_is_refused(listed: Any, told: str) -> None:
    with pytest.raises(InvalidField, match=told):
        of_list("hosts.json", listed)


def test_what_was_printed_elsewhere_needs_no_ansible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    (tmp_path / "hosts.json").write_text(json.dumps(LISTED))
    assert sources.read(str(tmp_path / "hosts.json")).hosts[-1] == "web1"


def test_everything_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    for name, text in (
        ("hosts.yml", "web: {hosts: {web1: {}}}"),
        ("yaml.json", '{"web": {"hosts": {"web1": {}}}}'),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InvalidField, match="needs ansible-core to be read"):
            sources.read(str(tmp_path / name))


def command(directory: Path, script: str) -> str:
    """A program of the name that is looked for; the PATH that leads to it."""
    program = directory / "bin" / "ansible-inventory"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


def test_the_command_is_asked_for_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hosts.yml").write_text("web: {hosts: {web1: {}}}")
    said = tmp_path / "said"
    monkeypatch.setenv("PATH", command(tmp_path, f"echo \"$@\" > {said}; cat <<'END'\n{json.dumps(LISTED)}\nEND"))
    assert sources.read(str(tmp_path / "hosts.yml")).groups["db"] == ("db1", "web2", "web1")
    assert said.read_text() == f"--inventory {tmp_path}/hosts.yml --list\n"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo no vault password >&2; exit 4", "failed with exit code 4"),
        ("echo '[WARNING]: what'", "is not JSON"),
        ("head -c 70000000 /dev/zero", "is larger than"),
    ],
)
def test_a_command_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: str
) -> None:
    (tmp_path / "hosts.yml").write_text("")
    monkeypatch.setenv("PATH", command(tmp_path, script))
    with pytest.raises(InvalidField, match=told):
        sources.read(str(tmp_path / "hosts.yml"))


def test_an_inventory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidField, match="does not exist"):
        sources.read(str(tmp_path / "hosts.yml"))

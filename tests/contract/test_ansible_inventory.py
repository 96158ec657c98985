"""Inventories as ansible-core reads them, by its library and by its command; `make setup-fleet` brings it here."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jobworker.cli.fleet import sources
from jobworker.cli.fleet.inventory import Inventory, of_list
from jobworker.cli.fleet.patterns import select
from jobworker.cli.fleet.targets import targets
from jobworker.client import Endpoint
from jobworker.errors import InvalidField

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-fleet" / "bin"

pytestmark = pytest.mark.skipif(not BIN.exists(), reason="needs ansible-core: make setup-fleet")

HOSTS = """
site:
  children:
    web:
      hosts:
        web[1:3].example.org:
      vars:
        agent_listen: 0.0.0.0:7000
    db:
      hosts:
        db1:
          ansible_host: "{{ lan }}.9"
          agent_server_name: db
      vars:
        lan: 10.0.0
all:
  hosts:
    alone:
  vars:
    pki_passphrase: !vault |
      $ANSIBLE_VAULT;1.1;AES256
      33363465363230326231623861326636
"""

# Groups with an order that is not the inventory's, and a host that `all` has as well.
ORDERED = """
all:
  hosts: {z9: , a1: }
  children:
    db: {hosts: {h2: , h1: }}
    web: {hosts: {h1: , h2: , h3: , a1: }}
    site:
      children:
        web_b: {hosts: {e2: , e1: }}
        web:
      hosts: {s1: , h3: }
"""
# Its groups come to be before the one that they are below.
INI = """
lone
[web_b]
h2
h1
[web_a]
h1
h3
[web_all:children]
web_a
web_b
"""
PATTERNS = (
    *("web[0]", "web[-1]", "web[0:1]", "web[1:]", "web[9]", "web_b[0]:db", "db:web", "web,db", "site", "site[0]"),
    *(
        "web:&db",
        "db:&web:!web[0]",
        "db:!h2",
        "h1,z9,db",
        "h2",
        "&h1",
        "h1[0]",
        "ungrouped",
        "nope",
        "web[0],db[0]",
    ),
)
# For these the order in which hosts and groups came to be counts, which no list tells.
OPEN_PATTERNS = (
    *("all", "all[0]", "*", "*[0]", "*[-1]", "*[0:5]", "*[1:]", "web*[0]", "web*[3]", "web_*[0:2]", "h*[1]"),
    *("&web", "!web", "!h2", "~h[12]", "~web", "~(web|db)$"),
)


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    (tmp_path / "hosts.yml").write_text(HOSTS)
    return tmp_path / "hosts.yml"


def by_library(path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """What the library makes of it, in the Python that has it; with what that Python needs of us and no more."""
    script = (
        "import json, sys\n"
        "from jobworker.cli.fleet import ansible_library\n"
        "print(json.dumps(ansible_library.read(sys.argv[1])))\n"
    )
    return subprocess.run(
        [BIN / "python", "-c", script, path],
        env={**os.environ, "PYTHONPATH": str(ROOT / "agent"), **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def check(inventory: Inventory, db_address: str) -> None:
    web = ("web1.example.org", "web2.example.org", "web3.example.org")
    assert inventory.groups["web"] == web
    assert sorted(inventory.groups["site"]) == ["db1", *web]
    assert sorted(inventory.hosts) == ["alone", "db1", *web]
    assert inventory.variables["web2.example.org"] == {"agent_listen": "0.0.0.0:7000"}
    assert inventory.variables["db1"] == {"ansible_host": db_address, "agent_server_name": "db"}
    assert inventory.variables["alone"] == {}


def test_the_command_s_list_is_understood(hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    check(sources.read(str(hosts)), "{{ lan }}.9")


def test_the_library_fills_in_templates(hosts: Path) -> None:
    done = by_library(hosts)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert "pki_passphrase" not in done.stdout
    check(of_list(str(hosts), told), "10.0.0.9")


@pytest.fixture
def password(hosts: Path) -> Path:
    """The file with the password of variables that are encrypted as a whole."""
    (password := hosts.parent / "password").write_text("a vault's")
    (variables := hosts.parent / "group_vars" / "all" / "vault.yml").parent.mkdir(parents=True)
    variables.write_text("wan: 10.7.7")
    hosts.write_text(HOSTS.replace("{{ lan }}", "{{ wan }}"))
    subprocess.run(
        [BIN / "ansible-vault", "encrypt", "--vault-password-file", password, variables],
        capture_output=True,
        check=True,
    )
    return password


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ANSIBLE_VAULT_PASSWORD_FILE", "{}"),
        ("ANSIBLE_VAULT_IDENTITY_LIST", "gone@/nonexistent,site@{}"),
        # Nobody is there to be asked.
        ("ANSIBLE_VAULT_IDENTITY_LIST", "mine@prompt,site@{}"),
    ],
)
def test_the_library_opens_what_is_encrypted(hosts: Path, password: Path, name: str, value: str) -> None:
    done = by_library(hosts, **{name: value.format(password)})
    assert done.returncode == 0, done.stderr
    check(of_list(str(hosts), json.loads(done.stdout)), "10.7.7.9")


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "A vault password must be specified"),
        ({"ANSIBLE_VAULT_IDENTITY_LIST": "mine@prompt"}, "A vault password must be specified"),
        ({"ANSIBLE_VAULT_PASSWORD_FILE": "/nonexistent"}, "/nonexistent was not found"),
        ({"ANSIBLE_VAULT_PASSWORD_FILE": "/nonexistent", "LC_ALL": "C"}, "the locale encoding to be UTF-8"),
    ],
)
@pytest.mark.usefixtures("password")
def test_what_stays_encrypted_is_told(hosts: Path, environ: dict[str, str], told: str) -> None:
    done = by_library(hosts, **environ)
    assert done.returncode == 1
    assert f"--inventory: {hosts} is not understood: " in done.stderr
    assert told in done.stderr


def by_ansible(path: Path) -> dict[str, list[str]]:
    """What Ansible itself makes of each pattern."""
    script = (
        "import json, sys\n"
        "from ansible.errors import AnsibleError\n"
        "from ansible.inventory.manager import InventoryManager\n"
        "from ansible.parsing.dataloader import DataLoader\n"
        "from ansible.plugins.loader import init_plugin_loader\n"
        "init_plugin_loader()\n"
        "hosts = InventoryManager(loader=DataLoader(), sources=[sys.argv[1]])\n"
        "def named(pattern):\n"
        "    try:\n"
        "        return [host.name for host in hosts.get_hosts(pattern)]\n"
        "    except AnsibleError:\n"
        "        return []\n"
        "print(json.dumps({pattern: named(pattern) for pattern in sys.argv[2:]}))\n"
    )
    command = [str(BIN / "python"), "-c", script, str(path), *PATTERNS, *OPEN_PATTERNS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told: dict[str, list[str]] = json.loads(done.stdout)
    return told


def by_us(inventory: Inventory, patterns: tuple[str, ...]) -> dict[str, list[str]]:
    return {pattern: list(select(inventory, pattern, "--limit").hosts) for pattern in patterns}


@pytest.mark.parametrize(("name", "text"), [("hosts.yml", ORDERED), ("hosts.ini", INI)], ids=["yaml", "ini"])
def test_a_pattern_names_the_hosts_that_it_names_to_ansible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    (path := tmp_path / name).write_text(text)
    meant = by_ansible(path)
    loaded = of_list(str(path), json.loads(by_library(path).stdout), in_order=True)
    assert by_us(loaded, (*PATTERNS, *OPEN_PATTERNS)) == meant
    listed = by_us(sources.read(str(path)), PATTERNS)
    assert listed == {pattern: meant[pattern] for pattern in PATTERNS}


def test_what_ansible_does_not_understand_is_told_in_its_words(hosts: Path) -> None:
    (hosts.parent / "host_vars").mkdir()
    (hosts.parent / "host_vars" / "db1.yml").write_text("wan: [")
    done = by_library(hosts)
    assert done.returncode == 1
    assert f"{InvalidField.__name__}: --inventory: {hosts} is not understood: " in done.stderr


def test_a_template_without_a_value_is_refused_with_its_host_and_blocks_no_other(hosts: Path) -> None:
    alone = 'alone: {agent_address: "{{ hostvars.db1.agent_server_name }}:7443"}'
    hosts.write_text(HOSTS.replace("{{ lan }}", "{{ wan }}").replace("alone:", alone))
    done = by_library(hosts)
    assert done.returncode == 0, done.stderr
    inventory = of_list(str(hosts), json.loads(done.stdout), in_order=True)
    base = Endpoint("0.0.0.0:1", "ca.pem", "me.pem", "me.key", "")
    (alone_there,) = targets(inventory, ("alone",), base)
    assert alone_there.endpoint.addr == "db:7443"
    with pytest.raises(InvalidField, match="ansible_host of db1: is a template that is not filled in"):
        list(targets(inventory, ("db1",), base))

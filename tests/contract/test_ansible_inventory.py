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


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    (tmp_path / "hosts.yml").write_text(HOSTS)
    return tmp_path / "hosts.yml"


def by_library(path: Path) -> subprocess.CompletedProcess[str]:
    """What the library makes of it, in the Python that has it; with what that Python needs of us and no more."""
    script = (
        "import json, sys\n"
        "from jobworker.cli.fleet import ansible_library\n"
        "print(json.dumps(ansible_library.read(sys.argv[1])))\n"
    )
    return subprocess.run(
        [BIN / "python", "-c", script, path],
        env={**os.environ, "PYTHONPATH": str(ROOT / "agent")},
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


def test_what_ansible_does_not_understand_is_told_in_its_words(hosts: Path) -> None:
    hosts.write_text(HOSTS.replace("{{ lan }}", "{{ wan }}"))
    done = by_library(hosts)
    assert done.returncode == 1
    assert f"{InvalidField.__name__}: --inventory: {hosts} is not understood: " in done.stderr
    assert "wan" in done.stderr

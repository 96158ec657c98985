"""The Ansible collection says of itself what is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import jobworker
from jobworker.settings import limits_file, policy_file
from support import document

FLEET = document.all_pages()["docs/fleet.md"]
COLLECTION = Path(__file__).parents[2] / "ansible"
FILES = sorted([*COLLECTION.rglob("*/tasks/*.yml"), *COLLECTION.glob("playbooks/*.yml")])
ROLES = sorted(path.name for path in (COLLECTION / "roles").iterdir())


def read(*parts: str) -> Any:
    return yaml.safe_load(COLLECTION.joinpath(*parts).read_text())


@pytest.mark.parametrize("role", ROLES)
def test_arguments_are_described_as_they_are(role: str) -> None:
    defaults = read("roles", role, "defaults", "main.yml")
    described = read("roles", role, "meta", "argument_specs.yml")["argument_specs"]["main"]["options"]
    assert {name: option["default"] for name, option in described.items()} == defaults
    assert all(option["description"] for option in described.values())


@pytest.mark.parametrize("role", ROLES)
def test_what_a_role_takes_bears_its_name(role: str) -> None:
    assert all(name.startswith(f"{role}_") for name in read("roles", role, "defaults", "main.yml"))


def test_it_has_the_project_s_version() -> None:
    assert read("galaxy.yml")["version"] == jobworker.__version__
    assert read("roles", "agent", "defaults", "main.yml")["agent_version"] == jobworker.__version__
    assert read("roles", "client", "defaults", "main.yml")["client_version"] == jobworker.__version__


@pytest.mark.parametrize("name", ["upgrade", "rollback"])
def test_a_change_begins_with_one_host_and_ends_with_the_first_failure(name: str) -> None:
    (play,) = read("playbooks", f"{name}.yml")
    assert (play["serial"], play["max_fail_percentage"]) == ([1, "10%", "30%"], 0)


@pytest.mark.parametrize("page", document.all_pages())
def test_playbooks_that_pages_name_are_there(page: str) -> None:
    named = set(re.findall(r"jobworker\.jobworker\.(\w+)", document.all_pages()[page]))
    assert named <= {path.stem for path in COLLECTION.glob("playbooks/*.yml")} | set(ROLES)
    assert named or page != "docs/fleet.md"


def test_no_rule_is_skipped() -> None:
    assert read(".ansible-lint") == {"profile": "production", "offline": True, "skip_list": [], "warn_list": []}


def tasks(tree: Any) -> list[dict[str, Any]]:
    """All tasks of a file, those of blocks included."""
    found = []
    for task in tree:
        found.append(task)
        for part in ("block", "rescue", "always", "tasks"):
            found += tasks(task.get(part, []))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_what_is_given_a_passphrase_is_not_logged(path: Path) -> None:
    for task in tasks(yaml.safe_load(path.read_text())):
        if not task.keys() & {"block", "tasks"} and "pki_passphrase" in str(task):
            assert task.get("no_log") is True, task["name"]


def test_the_inventory_that_is_shown_is_taken() -> None:
    (shown,) = (block for block in document.blocks(FLEET, "yaml") if "agent_policy" in block)
    # Ansible's own tag for what is in a vault.
    variables = yaml.safe_load(shown.replace("!vault", ""))["jobworker"]["vars"]
    for rules in (variables["agent_policy"], variables["agent_limits"]):
        module = policy_file if "rules" in rules else limits_file
        module.load(yaml.safe_dump(rules))
    known = {name for role in ROLES for name in read("roles", role, "defaults", "main.yml")}
    assert known >= variables.keys()

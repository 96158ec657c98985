"""`worker-client reload`: what an agent's administrator asks after having changed a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent import Agent, running_agent

POLICY = "version: 1\nrules: [{name: all, allow: all}]\n"
LIMITS = "version: 1\nprofiles: {small: {memory: 64M}}\n"
REVOKED = "ffff\n"
READ = ["certificates", "revocations", "policy", "limits"]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    files = {"policy.yaml": POLICY, "limits.yaml": LIMITS, "revoked.txt": REVOKED}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    # The gateway reads this one as a user of its own.
    tmp_path.chmod(0o755)
    rules = f"policy: {tmp_path}/policy.yaml\nlimits: {tmp_path}/limits.yaml\n"
    others = f"tls: {{revoked: {tmp_path}/revoked.txt}}\nisolation: {{missing: report}}\n"
    with running_agent(rules + others) as running:
        yield running


def test_each_file_is_told_to_be_in_force_or_why_it_is_not(agent: Agent, tmp_path: Path) -> None:
    good = agent.cli("reload", check=True).stdout.decode()
    assert [line.split() for line in good.splitlines()] == [[what, "in", "force"] for what in READ]
    (tmp_path / "policy.yaml").write_text(POLICY.replace("allow", "permit"))
    (tmp_path / "limits.yaml").write_text(LIMITS.replace("64M", "much"))
    (tmp_path / "revoked.txt").write_text("no number\n")
    key = Path(agent.pki_dir, "server.key")
    whole = key.read_bytes()
    key.write_bytes(whole[:100])
    told = agent.cli("reload", "--format", "json")
    assert told.returncode == 1
    found = json.loads(told.stdout)
    assert (found["read"], list(found["stale_files"])) == (READ, READ)
    for what, problem in zip(READ, ("no private key", "line 1", "line 2", "line 2"), strict=True):
        assert problem in found["stale_files"][what]
    assert b"not in force, but what was good before it" in agent.cli("reload").stdout
    # By what was good before, calls are answered and jobs started.
    assert agent.cli("run", "--profile", "small", "--", "true").returncode == 0
    key.write_bytes(whole)
    for name, text in (("policy.yaml", POLICY), ("limits.yaml", LIMITS), ("revoked.txt", REVOKED)):
        (tmp_path / name).write_text(text)
    assert agent.cli("reload").returncode == 0


def test_files_are_read_whatever_they_look_like_from_outside(agent: Agent) -> None:
    says = [f'"{what}: read anew"' for what in READ[:2]] + [f'"{what} read"' for what in READ[2:]]
    before = [agent.log().count(each) for each in says]
    agent.cli("reload", check=True)
    assert [agent.log().count(each) for each in says] == [count + 1 for count in before]


def test_only_files_that_the_settings_name_are_told() -> None:
    with running_agent() as plain:
        assert plain.cli("reload", check=True).stdout.split() == [b"certificates", b"in", b"force"]

"""`worker-client context`: listing them, and making one the current one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILE = """# Mine.
contexts:
  lab: {addr: "lab:1", ca: ca.pem}   # at home
  staging: {addr: "staging:1"}
  'null': {}
current: lab  # for now
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(FILE)
    return path


def run(file: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JOBWORKER_")}
    command = [os.path.join(os.path.dirname(sys.executable), "worker-client"), "context", *words]
    variables = clean | {"JOBWORKER_CONFIG": str(file)} | environment
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def test_they_are_listed(file: Path) -> None:
    done = run(file)
    assert (done.returncode, done.stdout) == (0, "* lab      lab:1\n  staging  staging:1\n  null\n")
    told = [json.loads(line) for line in run(file, "--format", "json").stdout.splitlines()]
    assert told[:2] == [
        {"name": "lab", "current": True, "addr": "lab:1"},
        {"name": "staging", "current": False, "addr": "staging:1"},
    ]


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    done = run(tmp_path / "none.yaml")
    assert (done.returncode, done.stdout) == (0, f"there are no contexts in {tmp_path}/none.yaml\n")
    done = run(tmp_path / "none.yaml", "lab")
    assert (done.returncode, "does not exist" in done.stderr) == (2, True)


def test_one_becomes_the_current_one_and_nothing_else_changes(file: Path) -> None:
    file.chmod(0o640)
    link = file.with_name("link.yaml")
    link.symlink_to(file)
    done = run(link, "staging", JOBWORKER_ADDR="here:1")
    assert (done.returncode, done.stdout) == (0, f"staging is the current context of {link}\n")
    assert done.stderr == "worker-client: your environment counts before it: JOBWORKER_ADDR\n"
    assert file.read_text() == FILE.replace("current: lab  # for now", 'current: "staging"')
    assert (link.is_symlink(), file.stat().st_mode & 0o777) == (True, 0o640)
    assert sorted(os.listdir(file.parent)) == ["config.yaml", "link.yaml"]
    # A name that YAML would take for something else.
    assert run(file, "null").returncode == 0
    assert run(file).stdout.splitlines()[2] == "* null"


def test_a_file_that_has_none_gets_one(file: Path) -> None:
    file.write_text("contexts: {lab: {}}\n")
    assert run(file, "lab").returncode == 0
    assert file.read_text() == 'current: "lab"\ncontexts: {lab: {}}\n'


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (FILE, "prod", "'prod' is not among them; there are: lab, staging, null"),
        ("{current: a, contexts: {a: {}, b: {}}}\n", "b", "is written in a way that this program does not change"),
        ("contexts: {a: {addr: 1}}\n", "a", "contexts.a.addr: 1 is not text"),
    ],
)
def test_what_cannot_be_done_is_explained_and_changes_nothing(file: Path, text: str, name: str, said: str) -> None:
    file.write_text(text)
    done = run(file, name)
    assert done.returncode == 2
    assert said in done.stderr
    assert file.read_text() == text

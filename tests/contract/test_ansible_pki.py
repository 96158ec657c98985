"""The role that makes certificates, on this machine alone; `make setup-fleet` brings ansible-core here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from jobworker_pki import reading

ROOT = Path(__file__).parents[2]
PLAYBOOK = ROOT / ".venv-fleet" / "bin" / "ansible-playbook"
PASSPHRASE = "a passphrase of nobody"

MISTAKES = {
    "is not opened by this passphrase": {"pki_passphrase": f"not {PASSPHRASE}"},
    "/nonexistent/worker-pki: Error executing command": {"pki_command": "/nonexistent/worker-pki"},
}

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PLAYBOOK.exists(), reason="needs ansible-core: make setup-fleet"),
    pytest.mark.skipif(os.geteuid() != 0, reason="files are given to root"),
]


@pytest.fixture
def play(tmp_path: Path) -> Path:
    role = {"hosts": "all", "gather_facts": False, "roles": ["pki"]}
    (tmp_path / "play.yml").write_text(json.dumps([role]))
    return tmp_path / "play.yml"


def run(play: Path, *options: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """What a run with all that Ansible can tell says."""
    here = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "pki_command": str(Path(sys.executable).with_name("worker-pki")),
        "pki_passphrase": PASSPHRASE,
        "pki_trust_domain": "example.org",
        "pki_dir": str(play.with_name("pki")),
        "pki_files": str(play.with_name("tls")),
        "pki_group": "root",
        **variables,
    }
    return subprocess.run(
        [PLAYBOOK, "-vvv", "-i", "host.example.org,", "-e", json.dumps(here), *options, play],
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "ansible" / "roles"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def check(done: subprocess.CompletedProcess[str], *, changed: bool) -> None:
    assert done.returncode == 0, done.stdout
    assert ("changed=0 " not in done.stdout) is changed, done.stdout


def made(play: Path) -> int:
    """How many certificates there are, of all times."""
    index = play.with_name("pki") / "index.jsonl"
    return sum("serial" in json.loads(line) for line in index.read_text().splitlines())


def test_it_makes_what_is_missing_due_or_otherwise_named_and_says_why_it_cannot(play: Path) -> None:
    told = [run(play), run(play), run(play, "--check", "--diff")]
    for done, changed in zip(told, (True, False, False), strict=True):
        check(done, changed=changed)
    before = made(play)
    told.append(run(play, pki_force=True))
    check(told[-1], changed=True)
    # The operator's and the host's.
    assert made(play) == before + 2
    for why, mistake in MISTAKES.items():
        told.append(run(play, pki_force=True, **mistake))
        assert (told[-1].returncode != 0, why in told[-1].stdout) == (True, True), told[-1].stdout
        assert "changed=0 " in told[-1].stdout
    assert made(play) == before + 2
    names = ["host.example.org", "10.0.0.7"]
    for changed in (True, False):
        told.append(run(play, pki_names=names, pki_days=10))
        check(told[-1], changed=changed)
    certificate = x509.load_pem_x509_certificate((play.with_name("tls") / "server.pem").read_bytes())
    assert reading.hosts(certificate) == tuple(names)
    assert timedelta(days=9) < certificate.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=10)
    assert not [done for done in told if PASSPHRASE in done.stdout + done.stderr]

"""A passphrase that comes through a pipe, as automation hands it over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PASSPHRASE = "correct horse battery"


def pki(directory: Path, *words: str, said: str = PASSPHRASE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from jobworker_pki.cli import main; main()", *words]
    command += ["--passphrase-file", "/dev/stdin"]
    return subprocess.run(command, input=said, cwd=directory, capture_output=True, text=True, check=False)


@pytest.mark.timeout(300)
def test_it_is_read_once(tmp_path: Path) -> None:
    made = pki(tmp_path, "init", "pki", "--trust-domain", "example.org")
    assert made.returncode == 0, made.stderr
    issued = pki(tmp_path, "issue", "user", "alice", "--role", "WRITER", "--dir", "pki")
    assert issued.returncode == 0, issued.stderr
    refused = pki(tmp_path, "issue", "user", "bob", "--role", "WRITER", "--dir", "pki", said="something else")
    assert refused.returncode != 0

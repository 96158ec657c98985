"""The three programs are alike in how they are called, and in how they end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import certs
from support.manpages import PROGRAMS

BIN = os.path.dirname(sys.executable)
# As users have it: what is written may be held back, to the interpreter's end.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [os.path.join(BIN, words[0]), *words[1:]]
    taken = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
    return subprocess.run(command, text=True, env=ENVIRONMENT, check=False, timeout=60, **taken)


@pytest.fixture
def printing(tmp_path: Path) -> list[tuple[str, ...]]:
    """A command of each program that prints something, and all helps."""
    config = tmp_path / "agent.yaml"
    config.write_text("state_dir: /s\nlisten: 127.0.0.1:1\ntls: {ca: /a, cert: /b, key: /c}\n")
    certificate = certs.dev_pki().files("server").cert
    commands = [
        ("worker-client", "version"),
        ("worker-agent", "config", "show", str(config)),
        ("worker-pki", "show", certificate),
    ]
    return [*commands, *((name, "--help") for name in PROGRAMS)]


def test_output_that_cannot_be_written_is_told(printing: list[tuple[str, ...]]) -> None:
    for words in printing:
        with open("/dev/full", "wb") as full:
            done = run(*words, stdout=full)
        told = f"{words[0]}: the output cannot be written: No space left on device\n"
        assert (done.returncode, done.stderr) == (1, told)


def test_a_reader_that_is_gone_ends_it_quietly(printing: list[tuple[str, ...]]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for words in printing:
        done = run(*words, stdout=writing)
        assert (done.returncode, done.stderr) == (141, "")
    os.close(writing)

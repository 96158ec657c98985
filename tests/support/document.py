"""Documents whose files and commands are to be true: a file begins with its name, a command is run as it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_BIN = os.path.dirname(sys.executable)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def write_files(text: str, directory: Path) -> None:
    """Write those that have a name. Lines are counted as they are shown, without it."""
    for block in blocks(text, "yaml"):
        if name := re.match(r"# (\S+)\n", block):
            (directory / name[1]).write_text(block[name.end() :])


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command, and what it says."""
    for session in blocks(text, "console"):
        yield from re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)


def run(command: str, directory: Path) -> tuple[int, str]:
    """Exit status and output."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=directory,
        env={"PATH": f"{_BIN}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout

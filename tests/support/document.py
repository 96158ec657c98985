"""Documents whose files and commands are to be true: a file begins with its name, a command is run as it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_BIN = os.path.dirname(sys.executable)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def write_files(text: str, directory: Path) -> None:
    """Write those that have a name, a comment in their first line, as somebody would who copies them."""
    for block in blocks(text, "yaml"):
        if name := re.match(r"# (\S+)\n", block):
            (directory / name[1]).write_text(block)


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


def all_pages() -> dict[str, str]:
    """The text of README.md and of all of docs/, by their paths from the repository's root."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in pages}


def command_lines(text: str) -> list[str]:
    """What is typed in the shell sessions of a page, and what is quoted in its sentences."""
    typed = [
        line for session in blocks(text, "console") for line in re.findall(r"^[$#] (.*)", session, re.MULTILINE)
    ]
    for script in blocks(text, "sh"):
        typed += script.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return typed + [re.sub(r"\s+", " ", quoted) for quoted in re.findall(r"`([^`]+)`", prose)]


def units(text: str) -> set[str]:
    """The units of ours that a text names or has commands of systemd for; patterns of units as such."""
    asked = re.findall(r"(?:journalctl|systemctl) [^`\n]*", text)
    named = [name for line in asked for name in re.findall(r"(?<![\w/.-])jobworker[\w*-]*", line)]
    return {*named, *re.findall(r"\b(jobworker[\w*-]*)\.(?:service|socket|timer)\b", text)}


def anchors(text: str) -> set[str]:
    """What links can lead to in a page, as renderers of Markdown name its headings."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def links(text: str) -> list[str]:
    """Where a page leads to."""
    prose = re.sub(r"^```.*?^```$|`[^`]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", prose)

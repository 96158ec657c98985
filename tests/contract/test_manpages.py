"""The manual pages: one for each command, with all of its options, and nothing that roff stumbles over."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support import manpages, reference

PAGES = dict(manpages.pages())


def test_each_command_has_a_page_with_all_of_its_options() -> None:
    met = set()
    for program, command in manpages.PROGRAMS.items():
        for path, told in reference.help_of(program, command, None):
            page = PAGES[f"{path.replace(' ', '-')}.1"].replace("\\-", "-")
            met.add(f"{path.replace(' ', '-')}.1")
            for option in re.findall(r"^  (?:-\w, )?(--[a-z-]+)", told, re.MULTILINE):
                assert re.search(rf"^\.B .*{option}\b", page, re.MULTILINE), (path, option)
    assert PAGES.keys() == met


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
def test_roff_has_no_complaint(tmp_path: Path) -> None:
    manpages.main(str(tmp_path))
    for page in sorted(tmp_path.iterdir()):
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Tutf8", str(page)], capture_output=True, text=True, check=True
        )
        assert not done.stderr, (page.name, done.stderr)
    assert {page.name for page in tmp_path.iterdir()} == PAGES.keys()


def test_signs_of_roff_are_signs_of_the_text() -> None:
    page = PAGES["worker-agent-dev.1"]
    # An example that goes on in the next line.
    assert "pki/ca.pem \\e\n" in page
    assert not re.search(r"^'", page, re.MULTILINE)

"""docs/policy.md: its policies and commands give what stands there, and its tables hold what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from jobworker.policy import RPCS
from jobworker.settings import policy_file

ROOT = Path(__file__).parent.parent.parent
BIN = os.path.dirname(sys.executable)
DOCUMENT = (ROOT / "docs" / "policy.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


def test_the_commands_say_what_stands_there(tmp_path: Path) -> None:
    for text in blocks("yaml"):
        if name := re.match(r"# (\S+)\n", text):
            # Lines are counted as they are shown, without the name of the file.
            (tmp_path / name[1]).write_text(text[name.end() :])
    count = 0
    for session in blocks("console"):
        for command, said in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE):
            run = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env={"PATH": f"{BIN}:{os.environ['PATH']}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            assert run.stdout == said, command
            expected = 0 if said.startswith(("ALLOW", "the policy is good")) else 1 + said.startswith("wrong.yaml")
            assert run.returncode == expected, command
            count += 1
    assert count >= 6


def test_every_call_and_condition_is_explained() -> None:
    for name in (*RPCS, *policy_file._RULE):
        assert f"`{name}`" in DOCUMENT

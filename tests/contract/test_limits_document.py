"""docs/limits.md: its files and commands give what stands there, and its table holds what there is."""

from __future__ import annotations

import re
from pathlib import Path

from jobworker.limits import BY_NAME
from support import document

TEXT = (Path(__file__).parent.parent.parent / "docs" / "limits.md").read_text()


def test_the_commands_say_what_stands_there(tmp_path: Path) -> None:
    document.write_files(TEXT, tmp_path)
    runs = [(command, said) for command, said in document.commands(TEXT) if command.startswith("worker-agent")]
    for command, said in runs:
        assert document.run(command, tmp_path) == (2 if said.startswith("wrong.yaml") else 0, said), command
    assert len(runs) == 2


def test_every_limit_is_explained() -> None:
    rows = re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == BY_NAME.keys()

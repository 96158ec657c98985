"""docs/policy.md: its policies and commands give what stands there, and its tables hold what there is."""

from __future__ import annotations

from pathlib import Path

from jobworker.policy import RPCS
from jobworker.settings import policy_file
from support import document

TEXT = (Path(__file__).parent.parent.parent / "docs" / "policy.md").read_text()


def test_the_commands_say_what_stands_there(tmp_path: Path) -> None:
    document.write_files(TEXT, tmp_path)
    runs = list(document.commands(TEXT))
    for command, said in runs:
        status = 0 if said.startswith(("ALLOW", "the policy is good")) else 1 + said.startswith("wrong.yaml")
        assert document.run(command, tmp_path) == (status, said), command
    assert len(runs) >= 6


def test_every_call_and_condition_is_explained() -> None:
    for name in (*RPCS, *policy_file._RULE):
        assert f"`{name}`" in TEXT

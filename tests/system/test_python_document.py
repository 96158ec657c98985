"""docs/python.md: its examples do what stands there, against a whole agent."""

from __future__ import annotations

import doctest
import os
import re

import pytest

from support.agent import Agent

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
_OPTIONS = doctest.ELLIPSIS


def test_the_examples(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.path.join(ROOT, "docs", "python.md"), encoding="utf-8") as file:
        blocks = re.findall(r"^```pycon\n(.*?)^```$", file.read(), re.DOTALL | re.MULTILINE)
    monkeypatch.setenv("JOBWORKER_ADDR", agent.addr)
    for name, path in (("CA", "ca.pem"), ("CERT", "writer.pem"), ("KEY", "writer.key")):
        monkeypatch.setenv(f"JOBWORKER_{name}", os.path.join(agent.pki_dir, path))
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "python.md", None, 0)
    said: list[str] = []
    found = doctest.DocTestRunner(optionflags=_OPTIONS).run(examples, out=said.append)
    assert found.attempted > 10
    assert not found.failed, "".join(said)

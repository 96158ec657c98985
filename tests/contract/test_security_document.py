"""The settings that docs/security.md shows are the ones there are, and as they are by default."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from typing import Any

import pytest
import yaml

from jobworker.settings import load, schema

DOCUMENT = os.path.join(os.path.dirname(__file__), "..", "..", "docs", "security.md")
BASE = schema.Settings("/state", "127.0.0.1:1", schema.TlsSettings("/ca", "/cert", "/key"))


def blocks() -> list[str]:
    with open(DOCUMENT) as file:
        return re.findall(r"^```yaml\n(.*?)^```$", file.read(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.partition(":")[0])
def test_what_is_shown_are_the_defaults(block: str) -> None:
    assert load.load(block, BASE) == BASE


@pytest.mark.parametrize(
    ("path", "kind"), [(("quotas",), schema.QuotaSettings), (("tls", "certificates"), schema.CertificateSettings)]
)
def test_all_are_shown(path: tuple[str, ...], kind: type[Any]) -> None:
    shown: Any = next(tree for tree in map(yaml.safe_load, blocks()) if path[0] in tree)
    for step in path:
        shown = shown[step]
    assert len(shown) == len(fields(kind))

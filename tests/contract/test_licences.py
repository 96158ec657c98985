"""Bills of materials: what they lack is found, and the lock is of parts that are there with a licence."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

from support import document, licences
from support.licences import Part

LOCK = (document.ROOT / "requirements" / "install.lock").read_text()
SMALL = "a-b==1.0 \\\n    --hash=sha256:0\nc==2 ; sys_platform == 'linux' \\\n    --hash=sha256:1\nd==3\ne==4\n"


def component(name: str, version: str, *told: Any) -> dict[str, Any]:
    return {"name": name, "version": version, "licenses": list(told)}


GOOD = {
    "components": [
        component(
            "A_b", "1.0", {"license": {"id": "MIT"}}, {"license": {"name": "License :: OSI Approved :: MIT"}}
        ),
        component("c", "2", {"expression": "Apache-2.0 OR BSD-3-Clause"}),
        component(
            "d",
            "3",
            {"license": {"name": "declared license of 'd'", "text": {"content": "3-Clause BSD License"}}},
            {"license": {"name": "declared license file: LICENSE", "text": {"content": "Redistribution …"}}},
        ),
        component("e", "4", {"license": {"name": "License :: OSI Approved :: MIT License"}}),
    ]
}


def test_a_good_bill_is_a_list_of_licences() -> None:
    found = licences.parts(GOOD)
    assert found == [
        Part("a-b", "1.0", "MIT"),
        Part("c", "2", "Apache-2.0 OR BSD-3-Clause"),
        Part("d", "3", "3-Clause BSD License"),
        Part("e", "4", "MIT License"),
    ]
    assert licences.problems(found, licences.locked(SMALL)) == []


A, C, D, E = GOOD["components"]


@pytest.mark.parametrize(
    ("components", "said"),
    [
        ([A, D, E], ["c 2 is locked, and not in the bill"]),
        ([A, C, D, E, component("f", "1", {"expression": "MIT"})], ["f 1 is in the bill, and not locked"]),
        (
            [A, component("c", "3", {"expression": "MIT"}), D, E],
            ["c 2 is locked, and not in the bill", "c 3 is in the bill, and not locked"],
        ),
        ([A, component("c", "2"), D, E], ["c 2 has no licence that its metadata tell"]),
        ([A, {"name": "c", "version": "2"}, D, E], ["c 2 has no licence that its metadata tell"]),
    ],
)
def test_what_is_missing_is_found(
    components: list[Any], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert licences.problems(licences.parts({"components": components}), licences.locked(SMALL)) == said
    (tmp_path / "bom").write_text(json.dumps({"components": components}))
    (tmp_path / "lock").write_text(SMALL)
    assert licences.main(str(tmp_path / "bom"), str(tmp_path / "lock")) == 1
    assert capsys.readouterr().err.splitlines() == [f"licences: {sentence}" for sentence in said]


def test_each_locked_part_is_here_and_has_a_licence() -> None:
    for name, version in licences.locked(LOCK).items():
        told = importlib.metadata.distribution(name).metadata
        assert told["Version"] == version
        fields = [told.get_all(field, []) for field in ("License-Expression", "License")]
        classifiers = [each for each in told.get_all("Classifier", []) if each.startswith("License ::")]
        assert any(fields) or classifiers, name

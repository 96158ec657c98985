"""The licence of each part, from a bill of materials: `python -m support.licences BOM LOCK`.

Fails if the bill lacks something that is locked, has something else, or does not know a licence.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_CLASSIFIER = "License :: "


class Part(NamedTuple):
    name: str
    version: str
    licence: str


def locked(lock: str) -> dict[str, str]:
    """The version of each part of a lock, by its normalised name."""
    return {_normal(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE)}


def parts(bom: Mapping[str, Any]) -> list[Part]:
    """All parts of a bill in the form of CycloneDX, by name."""
    return sorted(
        Part(_normal(each["name"]), each["version"], " AND ".join(_licences(each)))
        for each in bom.get("components", [])
    )


def problems(found: list[Part], wanted: Mapping[str, str]) -> list[str]:
    """What is wrong with a bill for a lock, a sentence each."""
    has = {part.name: part.version for part in found}
    said = [f"{name} {version} is locked, and not in the bill" for name, version in wanted.items() - has.items()]
    said += [f"{name} {version} is in the bill, and not locked" for name, version in has.items() - wanted.items()]
    said += [
        f"{part.name} {part.version} has no licence that its metadata tell" for part in found if not part.licence
    ]
    return sorted(said)


def _licences(component: Mapping[str, Any]) -> Iterator[str]:
    told = [_said(entry) for entry in component.get("licenses", [])]
    # Trove's classifiers come beside what the author says, and are less exact.
    exact = [said for said in told if said and not said.startswith(_CLASSIFIER)]
    for said in exact or filter(None, told):
        yield said.removeprefix(f"{_CLASSIFIER}OSI Approved :: ")


def _said(entry: Mapping[str, Any]) -> str:
    """One licence, as CycloneDX has it: an expression, an identifier of SPDX, or the author's own words."""
    licence = entry.get("license", {})
    name = str(licence.get("name", ""))
    if name.startswith("declared license file"):
        # The text of one that is named beside it.
        return ""
    if name.startswith("declared license of"):
        name = str(licence.get("text", {}).get("content", "")).partition("\n")[0]
    return str(entry.get("expression") or licence.get("id") or name)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main(bom: str, lock: str) -> int:
    with open(bom, encoding="utf-8") as file:
        found = parts(json.load(file))
    with open(lock, encoding="utf-8") as file:
        wrong = problems(found, locked(file.read()))
    for problem in wrong:
        sys.stderr.write(f"licences: {problem}\n")
    for part in found:
        sys.stdout.write(f"{part.name} {part.version}: {part.licence}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

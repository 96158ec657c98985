"""All settings there are, as they would be written in the file, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from jobworker import units
from jobworker.errors import InvalidField
from jobworker.settings import load
from jobworker.settings.schema import Settings
from jobworker.settings.sections import Nested, Parse, Table

# Of a line; more than any value has.
_WIDTH = 1_000_000


@dataclass(frozen=True, slots=True)
class Effective:
    """One setting.

    Attributes:
        key: as `jobs.max_cpu`.
        value: as it would be written; None where there is none.
        line: of the file, from 1 on; None for a default.
    """

    key: str
    value: str | None
    line: int | None


def all_of(settings: Settings, lines: Mapping[str, int]) -> Iterator[Effective]:
    """All settings, in the order of `load`.

    Args:
        settings: what a file makes.
        lines: on which line of the file the value of a key is.
    """
    yield from _section("", load.TOP, settings, lines)
    for name, table in load.SECTIONS.items():
        yield from _section(f"{name}.", table, getattr(settings, name), lines)


def _section(prefix: str, table: Table, values: Any, lines: Mapping[str, int]) -> Iterator[Effective]:
    for key, (field, entry) in table.items():
        value, name = getattr(values, field), f"{prefix}{key}"
        if isinstance(entry, Nested):
            yield from _section(f"{name}.", entry.table, value, lines)
        else:
            yield Effective(name, written(field, value, entry), lines.get(name))


def written(field: str, value: Any, parse: Parse) -> str | None:
    """A value as it would be written in the file; None for an empty one, and where it cannot be.

    Args:
        field: of the schema, whose name tells the unit.
        value: of that.
        parse: reads it.
    """
    if value == "":
        return None
    text = _text(field, value)
    try:
        parse(field, _reads_as(text))
    except InvalidField:
        return None
    return text


def _text(field: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return _number(field, value)
    if isinstance(value, str) and _reads_as(value) == value:
        return value
    # In a list, since alone it may be followed by the end of a document.
    shown = value
    if isinstance(value, tuple):
        # Pairs are what became of a mapping.
        shown = dict(value) if value and isinstance(value[0], tuple) else list(value)
    return yaml.safe_dump([shown], default_flow_style=True, width=_WIDTH, allow_unicode=True).strip()[1:-1]


def _reads_as(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return None


def _number(field: str, value: int) -> str:
    if value and (field.endswith("_bytes") or field.startswith("keep_log")):
        return units.format_size(value)
    if value and field.endswith("_millis"):
        return units.format_cpu(value)
    if field.endswith("_ms"):
        return units.format_duration(value)
    return str(value)

"""Sections of the agent's configuration: from nodes of YAML to values, by tables of what may be there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from jobworker.errors import InvalidField
from jobworker.settings import yaml_reader
from jobworker.settings.yaml_reader import Reader

# Makes a setting of a name for it in errors, and of what YAML made of its text; raises InvalidField.
Parse: TypeAlias = Callable[[str, Any], Any]
# By keys of the file: the field of the schema, and how its value is read.
Table: TypeAlias = "Mapping[str, tuple[str, Parse | Nested]]"

_ITEM = re.compile(r"\[([0-9]+)\]")


@dataclass(frozen=True, slots=True)
class Nested:
    """A section in a section.

    Attributes:
        make: makes a value of its fields.
    """

    table: Table
    make: Callable[..., Any] = dict


def values(reader: Reader, node: Any, field: str, table: Table) -> dict[str, Any]:
    """What a section holds, by the fields of the schema; what is wrong with it is noted."""
    parts = {key: _read(entry) for key, (_, entry) in table.items()}
    return {table[key][0]: value for key, value in reader.fields(node, field, parts).items()}


def _read(entry: Parse | Nested) -> yaml_reader.Parse:
    if isinstance(entry, Nested):
        return lambda reader, node, field: entry.make(**values(reader, node, field, entry.table))
    return partial(_leaf, entry)


def _leaf(parse: Parse, reader: Reader, node: Any, field: str) -> Any:
    noted = len(reader.mistakes)
    value = reader.plain(node, field)
    if len(reader.mistakes) == noted:
        try:
            return parse(field, value)
        except InvalidField as error:
            where = _item(node, error.field.removeprefix(field))
            reader.wrong(where, error.field, error.problem, error.example)
    return None


def _item(node: Any, rest: str) -> Any:
    """The item of a list that the rest of a field's name leads to, or the node itself."""
    found = _ITEM.match(rest)
    return node.value[int(found[1])] if found else node

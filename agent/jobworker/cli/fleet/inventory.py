"""An inventory: groups of hosts, and of each host's variables those that lead to its agent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jobworker.errors import InvalidField

ALL = "all"
# The names that the Ansible collection has for them. All others, passphrases among them, are never kept.
VARIABLES = ("ansible_host", "agent_address", "agent_listen", "agent_server_name")

_META = "_meta"
_EXAMPLE = "what `ansible-inventory --list` prints"


@dataclass(frozen=True, slots=True)
class Inventory:
    """Hosts and groups in the order that the inventory has them in.

    Attributes:
        groups: each group's hosts, those of the groups below it included; `all` is among them.
        variables: those of VARIABLES that a host has, by its name.
    """

    groups: Mapping[str, tuple[str, ...]]
    variables: Mapping[str, Mapping[str, Any]]

    @property
    def hosts(self) -> tuple[str, ...]:
        return self.groups[ALL]


def of_list(path: str, told: Any) -> Inventory:
    """The inventory that `ansible-inventory --list` has printed.

    Args:
        path: where it comes from, for errors.
        told: its JSON as plain data.

    Raises:
        InvalidField: it has another form, or no hosts.
    """
    top = _mapping(path, told)
    hostvars = _mapping(f"{path}: {_META}.hostvars", _mapping(f"{path}: {_META}", top.get(_META)).get("hostvars"))
    groups = {name: _group(f"{path}: {name}", value) for name, value in top.items() if name != _META}
    hosts = {name: _members(groups, [name]) for name in groups}
    everyone = dict.fromkeys((*_members(groups, [ALL, *groups]), *hostvars))
    if not everyone:
        raise InvalidField(path, "holds no hosts")
    variables = {name: _kept(f"{path}: {_META}.hostvars.{name}", hostvars.get(name)) for name in everyone}
    return Inventory({**hosts, ALL: tuple(everyone)}, variables)


@dataclass(frozen=True, slots=True)
class _Group:
    hosts: tuple[str, ...]
    children: tuple[str, ...]


def _group(where: str, value: Any) -> _Group:
    parts = _mapping(where, value)
    return _Group(_names(f"{where}.hosts", parts.get("hosts")), _names(f"{where}.children", parts.get("children")))


def _members(groups: Mapping[str, _Group], names: Iterable[str]) -> tuple[str, ...]:
    """The hosts of these groups and of all below them, each once."""
    found, seen, coming = dict[str, None](), set[str](), list(names)
    while coming:
        name = coming.pop(0)
        # A group may be below several others, or be missing where it is empty.
        if name in seen or name not in groups:
            continue
        seen.add(name)
        found.update(dict.fromkeys(groups[name].hosts))
        coming[:0] = groups[name].children
    return tuple(found)


def _kept(where: str, value: Any) -> dict[str, Any]:
    variables = _mapping(where, value)
    return {name: variables[name] for name in VARIABLES if name in variables}


def _mapping(where: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidField(where, "is not an object", _EXAMPLE)
    return value


def _names(where: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InvalidField(where, "is not a list of names", _EXAMPLE)
    return tuple(value)

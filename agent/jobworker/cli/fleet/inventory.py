"""An inventory: groups of hosts, and of each host's variables those that lead to its agent."""

from __future__ import annotations

from collections import deque
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
        groups: each group's hosts in its own order, those of the groups below it included; `all` is the first.
        variables: those of VARIABLES that a host has, by its name.
    """

    groups: Mapping[str, tuple[str, ...]]
    variables: Mapping[str, Mapping[str, Any]]

    @property
    def hosts(self) -> tuple[str, ...]:
        return self.groups[ALL]


def of_list(path: str, told: Any, *, in_order: bool = False) -> Inventory:
    """The inventory that `ansible-inventory --list` has printed.

    Args:
        path: where it comes from, for errors.
        told: its JSON as plain data.
        in_order: groups and hosts are in Ansible's order. What is printed is sorted by their names instead; then
            they are taken as they come below `all`, which is not far from that order.

    Raises:
        InvalidField: it has another form, or no hosts.
    """
    top = _mapping(path, told)
    hostvars = _mapping(f"{path}: {_META}.hostvars", _mapping(f"{path}: {_META}", top.get(_META)).get("hostvars"))
    groups = {name: _group(f"{path}: {name}", value) for name, value in top.items() if name != _META}
    everyone = tuple(dict.fromkeys((*_members(groups, [ALL]), *_members(groups, groups), *hostvars)))
    if not everyone:
        raise InvalidField(path, "holds no hosts")
    names = dict.fromkeys((*hostvars, *everyone)) if in_order else everyone
    variables = {name: _kept(f"{path}: {_META}.hostvars.{name}", hostvars.get(name)) for name in names}
    others = (name for name in (groups if in_order else _top_down(groups)) if name != ALL)
    return Inventory({ALL: everyone, **{name: _members(groups, [name]) for name in others}}, variables)


@dataclass(frozen=True, slots=True)
class _Group:
    hosts: tuple[str, ...]
    children: tuple[str, ...]


def _group(where: str, value: Any) -> _Group:
    parts = _mapping(where, value)
    return _Group(_names(f"{where}.hosts", parts.get("hosts")), _names(f"{where}.children", parts.get("children")))


def _members(groups: Mapping[str, _Group], names: Iterable[str]) -> tuple[str, ...]:
    """The hosts of these groups and of all below them, each once: as in Ansible, those of nearer groups before."""
    found, seen, coming = dict[str, None](), set[str](), deque(names)
    while coming:
        name = coming.popleft()
        # A group may be below several others, or be missing where it is empty.
        if name in seen or name not in groups:
            continue
        seen.add(name)
        found.update(dict.fromkeys(groups[name].hosts))
        coming.extend(groups[name].children)
    return tuple(found)


def _top_down(groups: Mapping[str, _Group]) -> tuple[str, ...]:
    """The names of all groups, each followed by those of the groups below it."""
    found, coming = dict[str, None](), deque((ALL, *groups))
    while coming:
        name = coming.popleft()
        if name in groups and name not in found:
            found[name] = None
            coming.extendleft(reversed(groups[name].children))
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

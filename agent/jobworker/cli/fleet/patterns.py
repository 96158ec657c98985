"""Ansible's language of host patterns: `web*:&staging:!web7`, `db[0:2]`, `~web[0-9]`.

Terms are parted by `:` or `,`. Plain ones add hosts, those with `&` keep only what they name as well, those with
`!` take away; in this order, wherever they stand. A term is the name of a group or host, one with wildcards, or a
regular expression behind `~`; places in it, from 0 and both ends included, may stand behind it in brackets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from jobworker.cli.fleet.inventory import ALL, Inventory
from jobworker.errors import InvalidField

_KEEP, _TAKE_AWAY = "&", "!"
# A colon within brackets parts two places, not two terms.
_BETWEEN_TERMS = re.compile(r":(?![^\[\]]*\])")
_PLACES = re.compile(r"(?P<name>.+)\[(?:(?P<one>-?[0-9]+)|(?P<first>[0-9]*)[:-](?P<last>[0-9]*))\]")


@dataclass(frozen=True, slots=True)
class Selection:
    """What a pattern names.

    Attributes:
        hosts: in the inventory's order.
        unmatched: terms that match nothing in the inventory, misspelt perhaps.
    """

    hosts: tuple[str, ...]
    unmatched: tuple[str, ...]


def select(inventory: Inventory, pattern: str, field: str) -> Selection:
    """The hosts that a pattern names.

    Args:
        inventory: where to choose from.
        pattern: one or more terms.
        field: what the pattern is called in errors.

    Raises:
        InvalidField: it has no term, or a regular expression in it is none.
    """
    terms = _terms(inventory, pattern)
    if not terms:
        # As of a script whose variables are not set.
        raise InvalidField(field, f"{pattern!r:.80} names no host", "web*")
    found = {term: _matches(inventory, term.lstrip(_KEEP + _TAKE_AWAY), field) for term in terms}
    plain = [term for term in terms if term[0] not in (_KEEP, _TAKE_AWAY)]
    chosen = set[str]().union(*(found[term] for term in plain)) if plain else set(inventory.hosts)
    for term in terms:
        if term[0] == _KEEP:
            chosen &= set(found[term])
    for term in terms:
        if term[0] == _TAKE_AWAY:
            chosen -= set(found[term])
    unmatched = tuple(term for term in terms if not found[term])
    return Selection(tuple(host for host in inventory.hosts if host in chosen), unmatched)


def _terms(inventory: Inventory, pattern: str) -> list[str]:
    if pattern in inventory.variables:
        # An IPv6 address has colons of its own.
        return [pattern]
    parts = pattern.split(",") if "," in pattern else _BETWEEN_TERMS.split(pattern)
    return [term for part in parts if (term := part.strip()).lstrip(_KEEP + _TAKE_AWAY)]


def _matches(inventory: Inventory, term: str, field: str) -> tuple[str, ...]:
    """The hosts of one term, in the inventory's order."""
    if term.startswith("~"):
        return _named(inventory, _expression(term[1:], field))
    if places := _PLACES.fullmatch(term):
        return _at(_named(inventory, _wildcards(places["name"])), places)
    return _named(inventory, _wildcards(term))


def _named(inventory: Inventory, fits: Callable[[str], object]) -> tuple[str, ...]:
    """The hosts whose names fit, and all hosts of groups whose names do."""
    found = {host for host in inventory.hosts if fits(host)}
    found.update(*(hosts for name, hosts in inventory.groups.items() if fits(name)))
    return tuple(host for host in inventory.hosts if host in found)


def _at(hosts: tuple[str, ...], places: re.Match[str]) -> tuple[str, ...]:
    if places["one"]:
        at = int(places["one"])
        return hosts[at:][:1] if -len(hosts) <= at < len(hosts) else ()
    last = int(places["last"]) + 1 if places["last"] else None
    return hosts[int(places["first"] or 0) : last]


def _wildcards(term: str) -> Callable[[str], object]:
    wanted = "*" if term == ALL else term
    return lambda name: fnmatchcase(name, wanted)


def _expression(text: str, field: str) -> Callable[[str], object]:
    try:
        return re.compile(text).match
    except re.error as error:
        raise InvalidField(field, f"{text!r:.80} is no regular expression: {error}", r"~web\d+") from None

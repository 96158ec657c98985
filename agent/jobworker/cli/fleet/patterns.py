"""Ansible's language of host patterns: `web*:&staging:!web7`, `db[0:2]`, `~web[0-9]`.

Terms are parted by `:` or `,`. Plain ones add hosts, those with `&` keep only what they name as well, those with
`!` take away; in this order, wherever they stand. A term is the name of a group or host, one with wildcards, or a
regular expression behind `~`; places in it, from 0 and both ends included, may stand behind it in brackets.

At a place is the host that Ansible has there: who has tried a pattern with it means the same one here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain

from jobworker.cli.fleet.inventory import Inventory
from jobworker.errors import InvalidField

_KEEP, _TAKE_AWAY, _EXPRESSION = "&", "!", "~"
# A term with one of these may mean hosts beside the groups that it means.
_OPEN = re.compile(r"[.?*\[]")
# A colon within brackets parts two places, not two terms.
_BETWEEN_TERMS = re.compile(r":(?![^\[\]]*\])")
_PLACES = re.compile(r"(?P<name>.+)\[(?:(?P<one>-?[0-9]+)|(?P<first>[0-9]*)[:-](?P<last>[0-9]*))\]")


@dataclass(frozen=True, slots=True)
class Selection:
    """What a pattern names.

    Attributes:
        hosts: in the order in which the terms name them.
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
    found = {term: _found(inventory, term, field) for term in terms}
    plain = [found[term] for term in terms if term[0] not in (_KEEP, _TAKE_AWAY)]
    kept = [set(found[term]) for term in terms if term[0] == _KEEP]
    taken = set[str]().union(*(found[term] for term in terms if term[0] == _TAKE_AWAY))
    named = dict.fromkeys(chain(*plain) if plain else inventory.hosts)
    hosts = (host for host in named if host not in taken and all(host in each for each in kept))
    return Selection(tuple(hosts), tuple(term for term in terms if not found[term]))


def _terms(inventory: Inventory, pattern: str) -> list[str]:
    if pattern in inventory.variables:
        # An IPv6 address has colons of its own.
        return [pattern]
    parts = pattern.split(",") if "," in pattern else _BETWEEN_TERMS.split(pattern)
    return [term for part in parts if (term := part.strip()).lstrip(_KEEP + _TAKE_AWAY)]


def _found(inventory: Inventory, term: str, field: str) -> tuple[str, ...]:
    """The hosts of one term, some of them more than once."""
    if term in inventory.variables:
        return (term,)
    name = term.lstrip(_KEEP + _TAKE_AWAY)
    if name.startswith(_EXPRESSION):
        return _named(inventory, _expression(name[1:], field), beside_groups=True)
    if places := _PLACES.fullmatch(name):
        return _at(_fitting(inventory, places["name"]), places)
    return _fitting(inventory, name)


def _fitting(inventory: Inventory, term: str) -> tuple[str, ...]:
    return _named(inventory, lambda name: fnmatchcase(name, term), beside_groups=bool(_OPEN.search(term)))


def _named(inventory: Inventory, fits: Callable[[str], object], *, beside_groups: bool) -> tuple[str, ...]:
    """All hosts of groups whose names fit; then hosts whose names do, if `beside_groups` or no group's does.

    Who is named twice is there twice, for so Ansible counts places.
    """
    groups = [hosts for name, hosts in inventory.groups.items() if fits(name)]
    hosts = filter(fits, inventory.variables) if beside_groups or not groups else ()
    return (*chain(*groups), *hosts)


def _at(hosts: tuple[str, ...], places: re.Match[str]) -> tuple[str, ...]:
    if places["one"]:
        at = int(places["one"])
        return hosts[at:][:1] if -len(hosts) <= at < len(hosts) else ()
    last = int(places["last"]) + 1 if places["last"] else None
    return hosts[int(places["first"] or 0) : last]


def _expression(text: str, field: str) -> Callable[[str], object]:
    try:
        return re.compile(text).match
    except re.error as error:
        raise InvalidField(field, f"{text!r:.80} is no regular expression: {error}", r"~web\d+") from None

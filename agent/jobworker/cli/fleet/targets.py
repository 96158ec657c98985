"""Which hosts of an inventory a command is for, and where their agents are."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobworker.cli.fleet import patterns
from jobworker.cli.fleet.inventory import Inventory
from jobworker.client.endpoint import Endpoint, check_addr
from jobworker.errors import InvalidField

# As the collection's role sets agents up.
_LISTEN = "0.0.0.0:7443"
_PORT = re.compile(r":([0-9]{1,5})\Z")
_TEMPLATE = ("{{", "{%")
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Target:
    """A host as the inventory names it, and its agent."""

    name: str
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Wanted:
    """Hosts as the command line names them.

    Attributes:
        groups, hosts: by their names; all hosts where there are none of both.
        limit: a pattern that these have to match as well; None for none.
    """

    groups: tuple[str, ...]
    hosts: tuple[str, ...]
    limit: str | None


def choose(inventory: Inventory, wanted: Wanted) -> patterns.Selection:
    """The hosts that are wanted.

    Raises:
        InvalidField: a name is not in the inventory, or nothing is left.
    """
    chosen = {host for name in wanted.groups for host in _of_group(inventory, name)}
    for name in wanted.hosts:
        if name not in inventory.variables:
            raise _unknown("--host", name, inventory.hosts)
        chosen.add(name)
    limited = patterns.select(inventory, wanted.limit, "--limit") if wanted.limit is not None else None
    within = limited.hosts if limited else inventory.hosts
    named = bool(wanted.groups or wanted.hosts)
    hosts = tuple(host for host in within if host in chosen or not named)
    if not hosts:
        raise InvalidField("--group" if wanted.limit is None else "--limit", "leaves no host at all")
    return patterns.Selection(hosts, limited.unmatched if limited else ())


def targets(inventory: Inventory, hosts: tuple[str, ...], base: Endpoint) -> Iterator[Target]:
    """The hosts with their agents.

    Args:
        inventory: that they are in.
        hosts: their names.
        base: what all have in common; its address and server name are nobody's.

    Raises:
        InvalidField: a host's variables do not say where its agent is.
    """
    for name in hosts:
        variables = inventory.variables[name]
        server_name = _text(name, variables, "agent_server_name")
        yield Target(name, replace(base, addr=_address(name, variables), server_name=server_name))


def _address(name: str, variables: Mapping[str, Any]) -> str:
    """As the collection's `agent_address` has it by default, where the inventory has none."""
    if given := _text(name, variables, "agent_address"):
        return check_addr(given, f"agent_address of {name:.80}")
    listen = _text(name, variables, "agent_listen") or _LISTEN
    port = _PORT.search(listen)
    if not port:
        raise InvalidField(f"agent_listen of {name:.80}", f"{listen!r:.80} is not ADDRESS:PORT", _LISTEN)
    host = _text(name, variables, "ansible_host") or name
    return check_addr(f"{_bracketed(host)}:{port[1]}", f"the address of {name:.80}")


def _bracketed(host: str) -> str:
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host  # noqa: PLR2004 - the protocol's name
    except ValueError:
        return host


def _text(name: str, variables: Mapping[str, Any], variable: str) -> str:
    value = variables.get(variable)
    field = f"{variable} of {name:.80}"
    if not isinstance(value, str | None):
        raise InvalidField(field, f"{value!r:.80} is not text; put it into quotes")
    if value and any(mark in value for mark in _TEMPLATE):
        problem = (
            "is a template that is not filled in; only ansible-core can do that, installed beside worker-client "
            "and with all variables that are in it"
        )
        raise InvalidField(field, problem)
    return value or ""


def _of_group(inventory: Inventory, name: str) -> tuple[str, ...]:
    if name not in inventory.groups:
        raise _unknown("--group", name, tuple(inventory.groups))
    return inventory.groups[name]


def _unknown(field: str, name: str, known: tuple[str, ...]) -> InvalidField:
    return InvalidField(field, f"{name!r:.80} is not in the inventory; there are: {some(known, ', ')}")


def some(names: Sequence[str], between: str = " ") -> str:
    """Names for a person to read, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{between.join(names[:_SHOWN])}{more}"

"""The policy file: YAML to rules (see `yaml_reader`), in the process of `worker-agent policy`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

import yaml

from jobworker import identity
from jobworker.errors import InvalidField
from jobworker.identity import PATTERN, Role
from jobworker.limits import BY_NAME
from jobworker.policy import (
    MAX_POLICY_BYTES,
    MAX_RULES,
    OWN_USER,
    REST,
    RPCS,
    SELF,
    Cap,
    Effect,
    Policy,
    Rule,
)
from jobworker.sandbox import PROFILES
from jobworker.settings import yaml_reader
from jobworker.settings.yaml_reader import Parse, Reader

_ALL, _OWN = "all", "own"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
# What only a start has; a rule with any of these is about starts alone.
_OF_STARTS = ("users", "allow_root", "sandboxes", "commands", "env", "workdirs", "stdin", "limits")
_ALLOWING = ("allow_root", "commands", "env", "workdirs", "stdin", "limits")
_NOTHING_ALLOWED = "means nothing where nothing is allowed"
_WHY_ALLOWING = dict.fromkeys(("allow_root", "stdin", "limits"), _NOTHING_ALLOWED)
_MANY_NAMES = "can't be denied one by one: the same is had by another name; allow what may be, and nothing else"


def load(text: str) -> Policy:
    """Read a policy file.

    Raises:
        Mistakes: all that is wrong with it.
    """
    return yaml_reader.load(text, _policy, empty="let nobody do anything", most_bytes=MAX_POLICY_BYTES)


def _policy(reader: Reader, node: Any) -> Policy:
    found = reader.fields(node, "the file", {"version": yaml_reader.version, "rules": _rules})
    yaml_reader.require(reader, node, found, "version", "rules")
    return Policy(found.get("rules", ()))


def _rules(reader: Reader, node: Any, field: str) -> tuple[Rule, ...]:
    rules: tuple[Rule, ...] = reader.items(node, field, _rule)
    if len(rules) > MAX_RULES:
        reader.wrong(node, field, f"has {len(rules)} items, more than {MAX_RULES}")
    met: set[str] = set()
    for i, rule in enumerate(rules):
        if rule.name in met and rule.name:
            reader.wrong_beside(
                node.value[i], f"{field}[{i}].name", f"{rule.name} is the name of another rule too"
            )
        met.add(rule.name)
    return rules


def _rule(reader: Reader, node: Any, field: str) -> Rule:
    found = reader.fields(node, field, _RULE)
    if "name" not in found:
        reader.wrong_beside(node, f"{field}.name", "is missing: denials are told by it", "name: operators")
    effects = [name for name in ("allow", "deny") if name in found]
    if len(effects) != 1:
        problem = "is beside allow, and one of them it is" if effects else "is missing, or deny is"
        reader.wrong_beside(node, f"{field}.{'deny' if effects else 'allow'}", problem, "allow: [Query, Stream]")
    effect = Effect.DENY if effects == ["deny"] else Effect.ALLOW
    rpcs: tuple[str, ...] = found[effects[0]] if effects else ()
    _check(reader, node, field, found, effect, rpcs)
    values = {name: value for name, value in found.items() if name not in ("allow", "deny", "owner")}
    return Rule(**{"name": "", "effect": effect, "rpcs": rpcs, "owners": found.get("owner", ())} | values)


def _check(
    reader: Reader, node: Any, field: str, found: Mapping[str, Any], effect: Effect, rpcs: tuple[str, ...]
) -> None:
    """What goes together in one rule."""
    for name in (name for name in _OF_STARTS if name in found):
        if rpcs != ("Start",) and "" not in rpcs:
            problem = "is about what is started: give it a rule of its own"
            reader.wrong_beside(node, f"{field}.{name}", problem, f"{effect.value.lower()}: [Start]")
        elif effect is Effect.DENY and name in _ALLOWING:
            reader.wrong_beside(node, f"{field}.{name}", _WHY_ALLOWING.get(name, _MANY_NAMES))
    if effect is Effect.DENY and "List" in rpcs and ("owner" in found or "labels" in found):
        reader.wrong_beside(
            node, f"{field}.deny", "List shows what may be queried; deny Query of these jobs", "[Query]"
        )
    caps = {cap.limit for cap in found.get("limits", ())}
    if "swap" in caps and "memory" not in caps:
        reader.wrong_beside(node, f"{field}.limits.swap", "is nothing without limits.memory", "memory: 1G")


def _rpcs(reader: Reader, node: Any, field: str) -> tuple[str, ...]:
    if isinstance(node, yaml.ScalarNode) and node.value == _ALL:
        return ()
    if isinstance(node, yaml.ScalarNode):
        reader.wrong(node, field, "must be a list of calls, or the word all", "[Query, Stream]")
        # Not the empty one, which stands for all.
        return ("",)
    return reader.items(node, field, lambda reader, each, name: reader.one_of(each, name, RPCS)) or ("",)


def _name(reader: Reader, node: Any, field: str) -> str:
    name = reader.text(node, field, "operators")
    if name and not _NAME.fullmatch(name):
        reader.wrong(
            node, field, f"{name!r:.80} is not made of up to 63 of a-z, 0-9, `.`, `_` and `-`", "operators"
        )
    return name


def _principal(reader: Reader, node: Any, field: str) -> str:
    pattern = reader.text(node, field, PATTERN)
    if pattern:
        try:
            identity.check_principals(field, pattern)
        except InvalidField as error:
            reader.wrong(node, field, error.problem, error.example)
    return pattern


def _owners(reader: Reader, node: Any, field: str) -> tuple[str, ...]:
    def owner(reader: Reader, node: Any, field: str) -> str:
        if isinstance(node, yaml.ScalarNode) and node.value == SELF:
            return SELF
        return _principal(reader, node, field)

    if isinstance(node, yaml.ScalarNode):
        return (owner(reader, node, field),)
    return reader.items(node, field, owner)


def _labels(reader: Reader, node: Any, field: str) -> tuple[tuple[str, str], ...]:
    found = reader.mapping(node, field)
    if not found:
        reader.wrong(node, field, "is empty; leave it out")
    return tuple((key, reader.text(value, f"{field}.{key}", "build")) for key, value in found.items())


def _user(reader: Reader, node: Any, field: str) -> str:
    user = reader.text(node, field, "www-data")
    return OWN_USER if user == _OWN else user


def _path(reader: Reader, node: Any, field: str) -> str:
    path = reader.text(node, field, "/srv/build/*")
    if path and (not path.startswith("/") or path.startswith("//") or posixpath.normpath(path) != path):
        reader.wrong(node, field, f"{path!r:.80} is not an absolute path in its shortest form", "/srv/build/*")
    if "**" in path.removesuffix("/**"):
        reader.wrong(node, field, "has ** elsewhere than as its last component", "/srv/build/**")
    return path


def _command(reader: Reader, node: Any, field: str) -> tuple[str, ...]:
    if isinstance(node, yaml.ScalarNode):
        path = str(node.value)[:40] or "/usr/bin/make"
        problem = f"must be a list of the command and its arguments: [{path}] without any"
        reader.wrong(node, field, problem, f"[{path}, ...] with any")
        return ()

    def word(reader: Reader, node: Any, field: str) -> str:
        if field.endswith("[0]"):
            return _path(reader, node, field)
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str":
            # An empty argument is one.
            return str(node.value)
        return reader.text(node, field)

    words: tuple[str, ...] = reader.items(node, field, word)
    if REST in words[:-1]:
        reader.wrong(node, field, f"has {REST} elsewhere than at its end", "[/usr/bin/make, install, ...]")
    return words


def _caps(reader: Reader, node: Any, field: str) -> tuple[Cap, ...]:
    return tuple(_cap(reader, value, field, name) for name, value in reader.mapping(node, field).items())


def _cap(reader: Reader, node: Any, field: str, name: str) -> Cap:
    field = f"{field}.{name}"
    if name not in BY_NAME:
        reader.unknown_limit(node, field, name)
        return Cap(name)
    if isinstance(node, yaml.ScalarNode):
        return Cap(name, _maximum(reader, node, field, name))

    def maximum(reader: Reader, node: Any, field: str) -> str:
        return _maximum(reader, node, field, name)

    found = reader.fields(node, field, {"max": maximum, "required": Reader.flag})
    if not found:
        reader.wrong(node, field, "says nothing", "{max: 1G, required: true}")
    return Cap(name, found.get("max", ""), found.get("required", False))


def _maximum(reader: Reader, node: Any, field: str, name: str) -> str:
    value = reader.limit(node, field, name)
    return "" if value is None else str(BY_NAME[name].show(value))


def _list(item: Parse) -> Parse:
    return lambda reader, node, field: reader.items(node, field, item)


def _role(reader: Reader, node: Any, field: str) -> Role:
    return Role(reader.one_of(node, field, tuple(Role.__members__)) or Role.READER.value)


_RULE: dict[str, Parse] = {
    "name": _name,
    "allow": _rpcs,
    "deny": _rpcs,
    "principals": _list(_principal),
    "roles": _list(_role),
    "owner": _owners,
    "labels": _labels,
    "users": _list(_user),
    "allow_root": Reader.flag,
    "stdin": Reader.flag,
    "sandboxes": _list(lambda reader, node, field: reader.one_of(node, field, PROFILES)),
    "commands": _list(_command),
    "env": _list(lambda reader, node, field: reader.text(node, field, "LANG")),
    "workdirs": _list(_path),
    "limits": _caps,
}

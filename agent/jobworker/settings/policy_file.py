"""The policy file: YAML to rules, strictly, with the line and the field of each mistake.

Runs in a process of its own without privileges (`worker-agent policy`): no YAML parser reaches the others.
What could be read in two ways is a mistake here: others find the rule that does not mean what its author meant.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from jobworker import codec
from jobworker.errors import InvalidField, JobWorkerError
from jobworker.identity import Role
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

MAX_FILE_BYTES = 128 * 1024
_MAX_MISTAKES = 100
_VERSION = 1
_ALL, _OWN = "all", "own"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_SCHEME = "spiffe://"
# What only a start has; a rule with any of these is about starts alone.
_OF_STARTS = ("users", "allow_root", "sandboxes", "commands", "env", "workdirs", "stdin", "limits")
_ALLOWING = ("allow_root", "commands", "env", "workdirs", "stdin", "limits")
_NOTHING_ALLOWED = "means nothing where nothing is allowed"
_WHY_ALLOWING = dict.fromkeys(("allow_root", "stdin", "limits"), _NOTHING_ALLOWED)
_MANY_NAMES = "can't be denied one by one: the same is had by another name; allow what may be, and nothing else"


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong.

    Attributes:
        line: where, from 1 on.
        field: as `rules[2].users[0]`.
    """

    line: int
    field: str
    problem: str
    example: str = ""

    def __str__(self) -> str:
        return f"line {self.line}: {InvalidField(self.field, self.problem, self.example)}"


@dataclass(eq=False)
class PolicyMistakes(JobWorkerError):
    """A policy file that is none."""

    mistakes: tuple[Mistake, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.mistakes))


def load(text: str) -> Policy:
    """Read a policy file.

    Raises:
        PolicyMistakes: all that is wrong with it.
    """
    if len(text.encode("utf-8", "replace")) > MAX_FILE_BYTES:
        raise _only(1, "the file", f"is larger than {MAX_FILE_BYTES} bytes")
    reader = _Reader()
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        policy = _policy(reader, node) if node else Policy(())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise _only(mark.line + 1 if mark else 1, "the file", f"is not YAML: {problem}") from None
    except RecursionError:
        raise _only(1, "the file", "is nested too deep") from None
    if node is None:
        raise _only(1, "the file", "is empty, which would let nobody do anything", "version: 1")
    if not reader.mistakes and len(codec.dumps(policy)) > MAX_POLICY_BYTES:
        reader.wrong(node, "the file", "holds more than the agent's processes can tell each other")
    if reader.mistakes:
        raise PolicyMistakes(tuple(sorted(reader.mistakes, key=lambda mistake: mistake.line)[:_MAX_MISTAKES]))
    return policy


def _only(line: int, field: str, problem: str, example: str = "") -> PolicyMistakes:
    return PolicyMistakes((Mistake(line, field, problem, example),))


Parse = Callable[["_Reader", Any, str], Any]


class _Reader:
    """Goes through the nodes, and notes what is wrong; what it returns then is of no use."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self._met: set[int] = set()
        self._places: dict[str, Any] = {}

    def wrong(self, node: Any, field: str, problem: str, example: str = "") -> None:
        self.mistakes.append(Mistake(node.start_mark.line + 1, field, problem, example))

    def wrong_beside(self, node: Any, field: str, problem: str, example: str = "") -> None:
        """What is good by itself and not beside others; the node is where it would have been."""
        self.wrong(self._places.get(field, node), field, problem, example)

    def _once(self, node: Any, field: str) -> bool:
        """An alias stands for a node that was met before: a small file could become a large one."""
        if id(node) in self._met:
            self.wrong(node, field, "is an alias, which no policy needs")
            return False
        self._met.add(id(node))
        return True

    def mapping(self, node: Any, field: str) -> dict[str, Any]:
        """Nodes by their keys, each of which is there once."""
        if not isinstance(node, yaml.MappingNode):
            self.wrong(node, field, "must be a mapping of names to values")
            return {}
        found: dict[str, Any] = {}
        for key, value in node.value if self._once(node, field) else ():
            name = self.text(key, f"{field}: a key")
            if name in found:
                self.wrong(key, f"{field}.{name}", "is here twice")
            found[name] = value
            self._places[f"{field}.{name}"] = value
        return found

    def fields(self, node: Any, field: str, table: Mapping[str, Parse]) -> dict[str, Any]:
        """The values of a mapping whose keys are in the table."""
        values: dict[str, Any] = {}
        prefix = f"{field}." if field != "the file" else ""
        for name, value in self.mapping(node, field).items():
            if name in table:
                values[name] = table[name](self, value, f"{prefix}{name}")
            elif name:
                near = difflib.get_close_matches(name, table, n=1)
                self.wrong(value, f"{prefix}{name}", "is not known here", near[0] if near else "")
        return values

    def items(self, node: Any, field: str, item: Parse) -> tuple[Any, ...]:
        """A list that has something in it: an empty one could mean all as well as nothing."""
        if not isinstance(node, yaml.SequenceNode):
            self.wrong(node, field, "must be a list", "[…]")
            return ()
        if not self._once(node, field):
            return ()
        if not node.value:
            self.wrong(node, field, "is empty; leave it out")
        return tuple(item(self, each, f"{field}[{i}]") for i, each in enumerate(node.value))

    def text(self, node: Any, field: str, example: str = "") -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
            self.wrong(node, field, "must be text; put it in quotes if it looks like something else", example)
            return ""
        if not node.value:
            self.wrong(node, field, "is empty", example)
        return str(node.value)

    def flag(self, node: Any, field: str) -> bool:
        if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:bool":
            self.wrong(node, field, "is neither true nor false", "true")
            return False
        return str(node.value).lower() in ("true", "yes", "on")

    def one_of(self, node: Any, field: str, choices: tuple[str, ...]) -> str:
        value = self.text(node, field, choices[0])
        if value and value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            problem = f"{value!r:.40} is not one of {', '.join(choices)}"
            self.wrong(node, field, problem, (near or choices)[0])
            return ""
        return value


def _policy(reader: _Reader, node: Any) -> Policy:
    found = reader.fields(node, "the file", {"version": _version, "rules": _rules})
    for name in ("version", "rules"):
        if name not in found:
            reader.wrong(node, name, "is missing", "version: 1" if name == "version" else "")
    return Policy(found.get("rules", ()))


def _version(reader: _Reader, node: Any, field: str) -> None:
    if not isinstance(node, yaml.ScalarNode) or node.value != str(_VERSION):
        reader.wrong(node, field, "is not one that this agent knows", str(_VERSION))


def _rules(reader: _Reader, node: Any, field: str) -> tuple[Rule, ...]:
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


def _rule(reader: _Reader, node: Any, field: str) -> Rule:
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
    reader: _Reader, node: Any, field: str, found: Mapping[str, Any], effect: Effect, rpcs: tuple[str, ...]
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


def _rpcs(reader: _Reader, node: Any, field: str) -> tuple[str, ...]:
    if isinstance(node, yaml.ScalarNode) and node.value == _ALL:
        return ()
    if isinstance(node, yaml.ScalarNode):
        reader.wrong(node, field, "must be a list of calls, or the word all", "[Query, Stream]")
        # Not the empty one, which stands for all.
        return ("",)
    return reader.items(node, field, lambda reader, each, name: reader.one_of(each, name, RPCS)) or ("",)


def _name(reader: _Reader, node: Any, field: str) -> str:
    name = reader.text(node, field, "operators")
    if name and not _NAME.fullmatch(name):
        reader.wrong(
            node, field, f"{name!r:.80} is not made of up to 63 of a-z, 0-9, `.`, `_` and `-`", "operators"
        )
    return name


def _principal(reader: _Reader, node: Any, field: str) -> str:
    pattern = reader.text(node, field, f"{_SCHEME}example.org/user/ops-*")
    if pattern and not pattern.startswith((_SCHEME, "*")):
        problem = f"{pattern!r:.80} is no principal's identity, which begins with {_SCHEME}"
        reader.wrong(node, field, problem, f"{_SCHEME}example.org/user/ops-*")
    return pattern


def _owners(reader: _Reader, node: Any, field: str) -> tuple[str, ...]:
    def owner(reader: _Reader, node: Any, field: str) -> str:
        if isinstance(node, yaml.ScalarNode) and node.value == SELF:
            return SELF
        return _principal(reader, node, field)

    if isinstance(node, yaml.ScalarNode):
        return (owner(reader, node, field),)
    return reader.items(node, field, owner)


def _labels(reader: _Reader, node: Any, field: str) -> tuple[tuple[str, str], ...]:
    found = reader.mapping(node, field)
    if not found:
        reader.wrong(node, field, "is empty; leave it out")
    return tuple((key, reader.text(value, f"{field}.{key}", "build")) for key, value in found.items())


def _user(reader: _Reader, node: Any, field: str) -> str:
    user = reader.text(node, field, "www-data")
    return OWN_USER if user == _OWN else user


def _path(reader: _Reader, node: Any, field: str) -> str:
    path = reader.text(node, field, "/srv/build/*")
    if path and (not path.startswith("/") or path.startswith("//") or posixpath.normpath(path) != path):
        reader.wrong(node, field, f"{path!r:.80} is not an absolute path in its shortest form", "/srv/build/*")
    if "**" in path.removesuffix("/**"):
        reader.wrong(node, field, "has ** elsewhere than as its last component", "/srv/build/**")
    return path


def _command(reader: _Reader, node: Any, field: str) -> tuple[str, ...]:
    if isinstance(node, yaml.ScalarNode):
        path = str(node.value)[:40] or "/usr/bin/make"
        problem = f"must be a list of the command and its arguments: [{path}] without any"
        reader.wrong(node, field, problem, f"[{path}, ...] with any")
        return ()

    def word(reader: _Reader, node: Any, field: str) -> str:
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


def _caps(reader: _Reader, node: Any, field: str) -> tuple[Cap, ...]:
    return tuple(_cap(reader, value, field, name) for name, value in reader.mapping(node, field).items())


def _cap(reader: _Reader, node: Any, field: str, name: str) -> Cap:
    field = f"{field}.{name}"
    if name not in BY_NAME:
        near = difflib.get_close_matches(name, BY_NAME, n=1)
        reader.wrong(node, field, "is not a limit", near[0] if near else "memory")
        return Cap(name)
    if isinstance(node, yaml.ScalarNode):
        return Cap(name, _maximum(reader, node, field, name))

    def maximum(reader: _Reader, node: Any, field: str) -> str:
        return _maximum(reader, node, field, name)

    found = reader.fields(node, field, {"max": maximum, "required": _Reader.flag})
    if not found:
        reader.wrong(node, field, "says nothing", "{max: 1G, required: true}")
    return Cap(name, found.get("max", ""), found.get("required", False))


def _maximum(reader: _Reader, node: Any, field: str, name: str) -> str:
    """Text, or a number where the limit is one."""
    value = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
    try:
        return str(BY_NAME[name].show(BY_NAME[name].read(value, field)))
    except InvalidField as error:
        reader.wrong(node, field, error.problem, error.example)
        return ""


def _list(item: Parse) -> Parse:
    return lambda reader, node, field: reader.items(node, field, item)


def _role(reader: _Reader, node: Any, field: str) -> Role:
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
    "allow_root": _Reader.flag,
    "stdin": _Reader.flag,
    "sandboxes": _list(lambda reader, node, field: reader.one_of(node, field, PROFILES)),
    "commands": _list(_command),
    "env": _list(lambda reader, node, field: reader.text(node, field, "LANG")),
    "workdirs": _list(_path),
    "limits": _caps,
}

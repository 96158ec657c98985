"""YAML of the administrator's, strictly, with the line and the field of each mistake.

Used in processes of their own without privileges: no YAML parser reaches the others. What could be read in two
ways is a mistake here: others find the line that does not mean what its author meant.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from jobworker import codec
from jobworker.errors import InvalidField, JobWorkerError
from jobworker.limits import BY_NAME

MAX_FILE_BYTES = 128 * 1024
_MAX_MISTAKES = 100
_VERSION = 1

T = TypeVar("T")


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
class Mistakes(JobWorkerError):
    """A file that is not what it should be."""

    mistakes: tuple[Mistake, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.mistakes))


def load(
    text: str, read: Callable[[Reader, Any], T], *, empty: str, most_bytes: int, reader: Reader | None = None
) -> T:
    """Read a file.

    Args:
        text: what it holds.
        read: makes of its node what it stands for, and notes mistakes.
        empty: what a file with nothing in it would mean; without a word here, it is one with no names in it.
        most_bytes: that the result can take as canonical JSON.
        reader: that is to go through the file.

    Raises:
        Mistakes: all that is wrong with it.
    """
    if len(text.encode("utf-8", "replace")) > MAX_FILE_BYTES:
        raise _only(1, f"is larger than {MAX_FILE_BYTES} bytes")
    reader = reader or Reader()
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None and not empty:
            node = yaml.compose("{}", Loader=yaml.SafeLoader)
        if node is None:
            raise _only(1, f"is empty, which would {empty}", f"version: {_VERSION}")
        value = read(reader, node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise _only(mark.line + 1 if mark else 1, f"is not YAML: {problem}") from None
    except RecursionError:
        raise _only(1, "is nested too deep") from None
    if not reader.mistakes and len(codec.dumps(value)) > most_bytes:
        reader.wrong(node, "the file", "holds more than the agent's processes can tell each other")
    if reader.mistakes:
        raise Mistakes(tuple(sorted(reader.mistakes, key=lambda mistake: mistake.line)[:_MAX_MISTAKES]))
    return value


def _only(line: int, problem: str, example: str = "") -> Mistakes:
    return Mistakes((Mistake(line, "the file", problem, example),))


Parse = Callable[["Reader", Any, str], Any]


class Reader:
    """Goes through the nodes, and notes what is wrong; what it returns then is of no use."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self._met: set[int] = set()
        self._places: dict[str, Any] = {}

    def wrong(self, node: Any, field: str, problem: str, example: str = "") -> None:
        self.mistakes.append(Mistake(node.start_mark.line + 1, field, problem, example))

    def wrong_beside(self, node: Any, field: str, problem: str, example: str = "") -> None:
        """What is good by itself and not beside others, or missing.

        Its line is that of the field, else of what that would be in, else the node's.
        """
        places = (self._places.get(name) for name in (field, field.rpartition(".")[0]))
        self.wrong(next(filter(None, places), node), field, problem, example)

    def lines(self) -> dict[str, int]:
        """On which line the value of each name is that was met, by its field, from 1 on."""
        return {field: node.start_mark.line + 1 for field, node in self._places.items()}

    def _once(self, node: Any, field: str) -> bool:
        """An alias stands for a node that was met before: a small file could become a large one."""
        if id(node) in self._met:
            self.wrong(node, field, "is an alias, which is not needed here; write it out")
            return False
        self._met.add(id(node))
        return True

    def mapping(self, node: Any, field: str) -> dict[str, Any]:
        """Nodes by their keys, each of which is there once."""
        if not isinstance(node, yaml.MappingNode):
            self.wrong(node, field, "must be a mapping of names to values", "name: value")
            return {}
        found: dict[str, Any] = {}
        for key, value in node.value if self._once(node, field) else ():
            name = self.text(key, f"{field}: a key")
            if name in found:
                self.wrong(key, _inside(field, name), "is here twice; take one of them out")
            found[name] = value
            self._places[_inside(field, name)] = value
        return found

    def fields(self, node: Any, field: str, table: Mapping[str, Parse]) -> dict[str, Any]:
        """The values of a mapping whose keys are in the table."""
        values: dict[str, Any] = {}
        for name, value in self.mapping(node, field).items():
            if name in table:
                values[name] = table[name](self, value, _inside(field, name))
            elif name:
                near = difflib.get_close_matches(name, table, n=1)
                problem = "is not known here" if near else f"is not known here; there are {', '.join(table)}"
                self.wrong(value, _inside(field, name), problem, "".join(near))
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

    def plain(self, node: Any, field: str) -> Any:
        """What YAML makes of text, a number, a flag, or of lists and mappings of these."""
        if isinstance(node, yaml.MappingNode):
            found = self.mapping(node, field)
            return {name: self.plain(value, _inside(field, name)) for name, value in found.items()}
        if not self._once(node, field):
            return None
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, f"{field}[{i}]") for i, item in enumerate(node.value)]
        try:
            made = yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            # A date that there is not, say, is no YAML error.
            problem = getattr(error, "problem", None) or str(error)
            self.wrong(node, field, f"is not what it looks like: {problem}; put it in quotes if it is text")
            return None
        if type(made) is int and str(made) != node.value:
            # 010 is eight here and ten to a reader of YAML 1.2; 1:30 is ninety, and text there.
            problem = f"{node.value!r:.40} is {made} to some and something else to others"
            self.wrong(node, field, f"{problem}; write it in decimal, or in quotes if it is text", str(made))
        return made

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

    def limit(self, node: Any, field: str, name: str) -> Any:
        """The value of a limit, which is text, or a number where the limit is one; None if it is neither."""
        kind = BY_NAME[name]
        try:
            return kind.read(str(node.value) if isinstance(node, yaml.ScalarNode) else "", field)
        except InvalidField as error:
            self.wrong(node, field, error.problem, error.example)
            return None

    def unknown_limit(self, node: Any, field: str, name: str) -> None:
        near = difflib.get_close_matches(name, BY_NAME, n=1)
        self.wrong(node, field, "is not a limit", near[0] if near else "memory")


def _inside(field: str, name: str) -> str:
    return name if field == "the file" else f"{field}.{name}"


def version(reader: Reader, node: Any, field: str) -> None:
    """Of the file's form."""
    if not isinstance(node, yaml.ScalarNode) or node.value != str(_VERSION):
        reader.wrong(node, field, "is not one that this agent knows", str(_VERSION))


def require(reader: Reader, node: Any, found: Mapping[str, Any], *names: str) -> None:
    """Note which of the file's parts are missing."""
    for name in names:
        if name not in found:
            reader.wrong(node, name, "is missing", f"version: {_VERSION}" if name == "version" else "")

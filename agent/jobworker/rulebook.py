"""Deciding by rules: a policy made ready once, and asked often.

No pattern takes time out of proportion to what it is matched with: each becomes an expression that does not
backtrack, and paths are matched component by component.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from jobworker.errors import InvalidField
from jobworker.jobs import JobSpec
from jobworker.limits import BY_NAME, Kind, Limits
from jobworker.policy import (
    MAX_RULES,
    OWN_USER,
    REST,
    SELF,
    UNMATCHED,
    Cap,
    Decision,
    Effect,
    Policy,
    Request,
    Rule,
)
from jobworker.sandbox import PROFILES, Profile

Matches = Callable[[str], bool]
Condition = Callable[[Request], bool]
StartCondition = Callable[[Request, JobSpec], bool]

_SAFE_PROFILES = tuple(name for name in PROFILES if name != Profile.HOST.value)
_ANY_DEPTH = "**"
# Components that the shortest form of a path does not have.
_NOT_SHORTEST = frozenset(("", ".", ".."))


class Rulebook:
    """A policy that can be asked.

    Raises:
        InvalidField: a rule is none; `settings.policy_file` has refused it before, in words for people.
    """

    def __init__(self, policy: Policy) -> None:
        if len(policy.rules) > MAX_RULES:
            raise InvalidField("rules", f"are {len(policy.rules)}, more than {MAX_RULES}")
        self._rules = tuple(map(_Ready, policy.rules))
        named = {rpc for rule in policy.rules for rpc in rule.rpcs}
        self._by_rpc = {rpc: tuple(rule for rule in self._rules if rule.concerns(rpc)) for rpc in named}
        self._for_all = tuple(rule for rule in self._rules if not rule.rule.rpcs)

    def decide(self, request: Request) -> Decision:
        """What the first rule says that matches."""
        for rule in self._by_rpc.get(request.rpc, self._for_all):
            if not rule.mismatch(request):
                return rule.decision(request)
        return UNMATCHED

    def explain(self, request: Request) -> Iterator[tuple[Rule, str]]:
        """Each rule up to the one that decides, with the name of its first condition that does not hold."""
        for rule in self._rules:
            problem = rule.mismatch(request) if rule.concerns(request.rpc) else "rpcs"
            yield rule.rule, problem
            if not problem:
                return

    def label_keys(self) -> frozenset[str]:
        """The labels that decisions depend on."""
        return frozenset(key for rule in self._rules for key, _ in rule.rule.labels)


class _Ready:
    """One rule, with its conditions in the order in which they are looked at."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._allows = rule.effect is Effect.ALLOW
        self._of_caller = tuple(_of_caller(rule))
        self._of_job = tuple(_of_job(rule))
        self._of_start = tuple(_of_start(rule) if self._allows else _of_denied_start(rule))
        self._caps = tuple(_ReadyCap(cap) for cap in rule.limits)

    def concerns(self, rpc: str) -> bool:
        return not self.rule.rpcs or rpc in self.rule.rpcs

    def mismatch(self, request: Request) -> str:
        """The name of the first condition that does not hold; empty if all do."""
        for name, holds in self._of_caller:
            if not holds(request):
                return name
        return self._mismatch_of_job(request) or self._mismatch_of_start(request)

    def _mismatch_of_job(self, request: Request) -> str:
        if request.owner is None:
            return self._unread(self._of_job)
        for name, holds in self._of_job:
            if not holds(request):
                return name
        return ""

    def _mismatch_of_start(self, request: Request) -> str:
        if request.spec is None:
            return self._unread(self._of_start)
        for name, holds in self._of_start:
            if not holds(request, request.spec):
                return name
        return ""

    def _unread(self, conditions: tuple[tuple[str, Any], ...]) -> str:
        """For a call without a job or specification, or not read yet: the condition that fails; empty for none.

        A rule that allows may still match then; one that denies does not, if it has such conditions.
        """
        return conditions[0][0] if conditions and not self._allows else ""

    def decision(self, request: Request) -> Decision:
        name = self.rule.name
        if not self._allows or request.spec is None:
            return Decision(self._allows, name)
        limits, filled = request.spec.limits, []
        for cap in self._caps:
            if problem := cap.problem(limits, profiled=bool(request.spec.profile)):
                return Decision(allowed=False, rule=name, problem=problem)
            if cap.fills(limits):
                limits = replace(limits, **{cap.kind.field: cap.maximum})
                filled.append(cap.kind.name)
        prescribed = tuple(cap.kind.name for cap in self._caps)
        return Decision(allowed=True, rule=name, limits=limits, prescribed=prescribed, filled=tuple(filled))


class _ReadyCap:
    """A limit that a rule speaks of."""

    def __init__(self, cap: Cap) -> None:
        field = f"limits.{cap.limit}"
        if cap.limit not in BY_NAME:
            raise InvalidField(field, "is not a limit", "memory")
        self.kind: Kind = BY_NAME[cap.limit]
        self.maximum: Any = self.kind.read(cap.maximum, field) if cap.maximum else None
        self._required = cap.required

    def problem(self, limits: Limits, *, profiled: bool) -> str:
        """Why a job with these limits is refused, beside those of a profile if it is `profiled`; empty if not."""
        asked = getattr(limits, self.kind.field)
        name = f"limits.{self.kind.name}"
        if asked is None:
            most = f", at most {self.kind.show(self.maximum)}" if self.maximum is not None else ""
            return f"{name} has to be asked for{most}" if self._required and not profiled else ""
        if self.maximum is not None and self.kind.exceeds(asked, self.maximum):
            return f"{name} is {self.kind.show(asked)}, more than {self.kind.show(self.maximum)}"
        return ""

    def fills(self, limits: Limits) -> bool:
        # A job whose memory is limited gets no swap unless it asks for some.
        return self.maximum is not None and getattr(limits, self.kind.field) is None and self.kind.name != "swap"


def _of_caller(rule: Rule) -> Iterator[tuple[str, Condition]]:
    if rule.roles:
        yield "roles", lambda request: request.role in rule.roles
    if rule.principals:
        principals = _any_of(rule.principals)
        yield "principals", lambda request: principals(request.principal)


def _of_job(rule: Rule) -> Iterator[tuple[str, Condition]]:
    if rule.owners:
        own = SELF in rule.owners
        others = _any_of(tuple(each for each in rule.owners if each != SELF))

        def owned(request: Request) -> bool:
            return (own and request.owner == request.principal) or others(request.owner or "")

        yield "owner", owned
    if rule.labels:
        wanted = tuple((key, _pattern(value)) for key, value in rule.labels)

        def labelled(request: Request) -> bool:
            has = dict(request.labels)
            return all(key in has and value(has[key]) for key, value in wanted)

        yield "labels", labelled


def _of_start(rule: Rule) -> Iterator[tuple[str, StartCondition]]:
    users = _any_of(rule.users or (OWN_USER,))
    yield "users", lambda _, spec: users(spec.user)
    if not rule.allow_root:
        yield "allow_root", lambda request, _: not request.root
    sandboxes = rule.sandboxes or _SAFE_PROFILES
    yield "sandboxes", lambda request, _: request.sandbox in sandboxes
    if rule.commands:
        commands = tuple(map(_command, rule.commands))
        yield "commands", lambda _, spec: any(command(spec) for command in commands)
    if rule.commands or rule.env:
        names = _any_of(rule.env)
        yield "env", lambda _, spec: all(names(name) for name, _ in spec.env)
    if rule.commands or rule.workdirs:
        workdirs = tuple(map(_path, rule.workdirs))
        yield "workdirs", lambda _, spec: not spec.workdir or any(matches(spec.workdir) for matches in workdirs)
    if rule.commands and not rule.stdin:
        yield "stdin", lambda _, spec: not spec.stdin and not spec.stdin_open


def _of_denied_start(rule: Rule) -> Iterator[tuple[str, StartCondition]]:
    """Those that may stand in a rule that denies: what has many names would be called by another one."""
    if rule.users:
        users = _any_of(rule.users)
        yield "users", lambda _, spec: users(spec.user)
    if rule.sandboxes:
        yield "sandboxes", lambda request, _: request.sandbox in rule.sandboxes


def _command(patterns: tuple[str, ...]) -> Callable[[JobSpec], bool]:
    if not patterns:
        raise InvalidField("commands", "has an empty one", "[/usr/bin/make, ...]")
    path, *arguments = patterns
    path_matches = _path(path)
    rest = bool(arguments) and arguments[-1] == REST
    each = tuple(map(_pattern, arguments[:-1] if rest else arguments))

    def matches(spec: JobSpec) -> bool:
        if not path_matches(spec.command):
            return False
        enough = len(spec.args) >= len(each) if rest else len(spec.args) == len(each)
        return enough and all(match(arg) for match, arg in zip(each, spec.args, strict=False))

    return matches


def _pattern(pattern: str) -> Matches:
    prefix = _literal(pattern)
    if prefix == pattern:
        return pattern.__eq__
    match = re.compile(fnmatch.translate(pattern)).match
    # Most of what does not match is told by its beginning, in a tenth of the time.
    return lambda text: text.startswith(prefix) and match(text) is not None


def _literal(pattern: str) -> str:
    """A pattern up to its first character that stands for others."""
    return re.split(r"[*?[]", pattern, maxsplit=1)[0]


def _any_of(patterns: tuple[str, ...]) -> Matches:
    # Of a user, the empty one is a word of its own, which no pattern stands for.
    ready = tuple(_pattern(each) for each in patterns if each)
    empty = "" in patterns
    if len(ready) == 1 and not empty:
        only = ready[0]
        return lambda text: bool(text) and only(text)
    return lambda text: any(matches(text) for matches in ready) if text else empty


def _path(pattern: str) -> Matches:
    """Of absolute paths in their shortest form: what has `.`, `..` or an empty component matches nothing."""
    if not pattern.startswith("/"):
        raise InvalidField("path", f"{pattern!r:.80} is not absolute", "/srv/build/*")
    prefix = _literal(pattern)
    *parts, last = pattern.split("/")[1:]
    deep = last == _ANY_DEPTH
    ready = tuple(map(_pattern, parts if deep else [*parts, last]))

    def matches(path: str) -> bool:
        if not path.startswith(prefix):
            return False
        given = path.split("/")[1:]
        if not _NOT_SHORTEST.isdisjoint(given):
            return False
        enough = len(given) > len(ready) if deep else len(given) == len(ready)
        return enough and all(match(part) for match, part in zip(ready, given, strict=False))

    return matches

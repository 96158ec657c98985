"""What `worker-agent policy test` answers: a decision in words, rule by rule."""

from __future__ import annotations

import pwd
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jobworker import identity
from jobworker.cli.client_spec import labels_of
from jobworker.errors import InvalidField
from jobworker.identity import Role
from jobworker.jobs import JobSpec
from jobworker.limits import BY_NAME, KINDS, Limits
from jobworker.policy import (
    NAMING_A_JOB,
    OWN_USER,
    SELF,
    WRITING,
    Decision,
    Effect,
    Policy,
    Request,
    Rule,
    of_a_start,
)
from jobworker.rulebook import Rulebook
from jobworker.sandbox import PROFILES, Profile

_OF_A_JOB = ("job_owner", "job_label")
_OF_A_START = (
    *("command", "user", "sandbox", "env", "workdir", "stdin", "label"),
    *(kind.name for kind in KINDS),
)
_OWN_DIRECTORY = "the job's own, since it has commands"


def explain(policy: Policy, options: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the call is allowed, and the lines that tell why.

    Raises:
        InvalidField: the options do not describe a call.
    """
    request, rulebook = _request(options), Rulebook(policy)
    if request.rpc in WRITING and request.role is not Role.WRITER:
        return False, f"DENY by the role: {request.rpc} needs WRITER, whatever the rules say"
    decision = rulebook.decide(request)
    met = list(rulebook.explain(request))
    lines = [_verdict(decision), *_held(decision)]
    lines += [f"  {i}. {_told(rule, problem, request)}" for i, (rule, problem) in enumerate(met, 1)]
    if len(met) < len(policy.rules):
        lines.append(f"  ({len(policy.rules) - len(met)} more, not looked at)")
    if request.rpc == "List" and decision.allowed:
        lines.append("List shows those jobs that Query is allowed for.")
    return decision.allowed, "\n".join(lines)


def _request(options: Mapping[str, Any]) -> Request:
    rpc, role = options["rpc"], Role(options["role"])
    principal = identity.check_principal("--as", options["principal"])
    if rpc == "Start":
        _refuse(options, _OF_A_JOB, "is about a job that was started, and Start names none")
        if not options["command"]:
            raise InvalidField("--command", "is missing: Start is about what is started", "'/usr/bin/make -j4'")
        return of_a_start(
            principal,
            role,
            _spec(options),
            options["sandbox"] or Profile.STANDARD.value,
            root=_is_root(options["user"]),
        )
    _refuse(options, _OF_A_START, f"is about what is started, and {rpc} starts nothing")
    if rpc not in NAMING_A_JOB:
        _refuse(options, _OF_A_JOB, f"is about a job, and {rpc} names none")
        return Request(rpc, principal, role)
    if not options["job_owner"]:
        raise InvalidField("--job-owner", f"is missing: {rpc} names a job, which somebody has started", SELF)
    owner = principal
    if options["job_owner"] != SELF:
        owner = identity.check_principal("--job-owner", options["job_owner"])
    return Request(rpc, principal, role, owner, tuple(labels_of(options["job_label"]).items()))


def _refuse(options: Mapping[str, Any], names: tuple[str, ...], problem: str) -> None:
    """Refuse options that the answer would pass over: whoever gives them asks something else."""
    for name in names:
        if options[name]:
            raise InvalidField(f"--{name.replace('_', '-')}", problem)


def _spec(options: Mapping[str, Any]) -> JobSpec:
    command, *args = _words(options["command"]) or [""]
    limits = {
        kind.field: kind.read(text, f"--{kind.name.replace('_', '-')}")
        for kind in KINDS
        if (text := options[kind.name]) is not None
    }
    spec = JobSpec(
        command=command,
        args=tuple(args),
        env=tuple((name, "") for name in options["env"]),
        workdir=options["workdir"],
        limits=Limits(**limits),
        labels=tuple(labels_of(options["label"]).items()),
        sandbox=options["sandbox"] or Profile.STANDARD.value,
        user=options["user"],
        # Any will do: what it holds decides nothing.
        stdin=b"\n" if options["stdin"] else b"",
    )
    spec.check()
    return spec


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        problem = f"{text!r:.80} is not quoted as for a shell: {str(error).lower()}"
        raise InvalidField("--command", problem, "'/usr/bin/make -j4'") from None


def _is_root(user: str) -> bool:
    try:
        return bool(user) and pwd.getpwnam(user).pw_uid == 0
    except KeyError:
        # The policy may be for another host.
        return user == "root"


def _verdict(decision: Decision) -> str:
    word = "ALLOW" if decision.allowed else "DENY"
    return f"{word} by {decision.rule}" + (f": {decision.problem}" if decision.problem else "")


def _held(decision: Decision) -> Iterator[str]:
    for name in decision.prescribed:
        kind = BY_NAME[name]
        if (value := getattr(decision.limits, kind.field)) is not None and decision.allowed:
            yield f"  held to {name} {kind.show(value)}" + (", by the rule" if name in decision.filled else "")


def _told(rule: Rule, problem: str, request: Request) -> str:
    name = f"{rule.name} ({'allow' if rule.effect is Effect.ALLOW else 'deny'})"
    if not problem:
        return f"{name} matches"
    return f"{name}: {problem}: {_WHY[problem](rule, request, request.spec or JobSpec(''))}"


def _not_labelled(rule: Rule, request: Request, _: JobSpec) -> str:
    has, wanted = (
        ", ".join(f"{key}={value}" for key, value in labels) for labels in (request.labels, rule.labels)
    )
    return f"the job has {has or 'no labels'}, and not all of {wanted}"


def _not_the_user(rule: Rule, _: Request, spec: JobSpec) -> str:
    return f"{_user(spec.user)} is none of {', '.join(map(_user, rule.users or (OWN_USER,)))}"


def _not_the_environment(rule: Rule, _: Request, spec: JobSpec) -> str:
    names, allowed = ", ".join(name for name, _ in spec.env), ", ".join(rule.env)
    return f"not all of {names} are among {allowed or 'none, since it has commands'}"


# Why each condition does not hold.
_WHY: dict[str, Callable[[Rule, Request, JobSpec], str]] = {
    "rpcs": lambda rule, request, _: f"{request.rpc} is not among {', '.join(rule.rpcs)}",
    "roles": lambda rule, request, _: (
        f"{request.role.value} is not {' or '.join(role.value for role in rule.roles)}"
    ),
    "principals": lambda rule, request, _: f"{request.principal} is none of {', '.join(rule.principals)}",
    "owner": lambda rule, request, _: f"the job is {request.owner}'s, who is none of {', '.join(rule.owners)}",
    "labels": _not_labelled,
    "users": _not_the_user,
    "allow_root": lambda _, __, spec: f"{spec.user} has the user id 0, and the rule does not say allow_root",
    "sandboxes": lambda rule, request, _: (
        f"{request.sandbox} is none of {', '.join(rule.sandboxes or PROFILES[1:])}"
    ),
    "commands": lambda _, __, spec: f"{shlex.join((spec.command, *spec.args))} is none of them{_hint(spec)}",
    "env": _not_the_environment,
    "workdirs": lambda rule, _, spec: f"{spec.workdir} is none of {', '.join(rule.workdirs) or _OWN_DIRECTORY}",
    "stdin": lambda *_: "the job is given input, and the rule, which has commands, does not say stdin",
}


def _hint(spec: JobSpec) -> str:
    return "" if spec.command.startswith("/") else ", which are paths: what PATH leads to is the client's choice"


def _user(user: str) -> str:
    return user or "own"

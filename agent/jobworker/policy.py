"""The vocabulary of policy: rules over who may do what, what is decided, and what a decision says.

The policy is a list of rules; the first one that matches a request decides it, and what none matches is denied. A
rule matches if all its conditions hold. Gateway and supervisor decide by the same code. Another engine than
`rulebook.Rulebook` takes its place by being a `Decide`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from jobworker.errors import NO_HOST, NO_POLICY, NO_RULE, JobNotFound, JobWorkerError, PolicyDenied
from jobworker.identity import Role
from jobworker.jobs import JobSpec
from jobworker.limits import NO_LIMITS, Limits
from jobworker.sandbox import PROFILES, Profile

# Calls as rules name them; `Health` stands for all calls of the health service.
RPCS = (
    "Start",
    "Stop",
    "Signal",
    "WriteStdin",
    "Update",
    "Delete",
    "Drain",
    "Undrain",
    "Reload",
    "Query",
    "Stream",
    "List",
    "Watch",
    "GetAgentInfo",
    "Health",
)
# These need the role WRITER, the others READER; no rule lets a caller do what the role does not.
WRITING = frozenset({"Start", "Stop", "Signal", "WriteStdin", "Update", "Delete", "Drain", "Undrain", "Reload"})
# These are about one job, and conditions of owner and labels about them are about that.
NAMING_A_JOB = frozenset({"Stop", "Signal", "WriteStdin", "Update", "Delete", "Query", "Stream"})
# In a rule's `owners`: the caller. In its `users`: the user that a job has for itself alone.
SELF, OWN_USER = "self", ""
# As a command's last pattern: any arguments, or none.
REST = "..."
# All of a policy must fit one message between the agent's processes.
MAX_RULES, MAX_POLICY_BYTES = 500, 320 * 1024


class Effect(enum.Enum):
    ALLOW = "ALLOW"
    DENY = "DENY"


@dataclass(frozen=True, slots=True)
class Cap:
    """What a rule holds a job to that it allows.

    Attributes:
        limit: its kind's name.
        maximum: as people write it; a job that asks for no such limit gets this one. Empty for any.
        required: a job that asks for no such limit is refused.
    """

    limit: str
    maximum: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. An empty condition holds for all, except where it says otherwise.

    `*` and `?` in patterns stand for any characters and for one; in paths for no slash.

    Attributes:
        rpcs: names of `RPCS`; empty for all.
        principals: patterns of the caller's identity.
        roles: of the caller.
        owners: patterns of the identity that has started the job which the call names, or `SELF`. Of a job that is
            being started the caller is the owner.
        labels: of that job: keys, and patterns of their values; it must have all of them.
        users: patterns of the users that a job may run as, or `OWN_USER`. Empty in a rule that allows: `OWN_USER`.
        allow_root: that user may be one with the user id 0.
        sandboxes: profiles. Empty in a rule that allows: all but `host`.
        commands: patterns of a command's path and of each argument.
        env: patterns of the names of variables that a job may be given. Empty in a rule with commands: none.
        workdirs: patterns of directories that a job may be started in, besides its own. Empty in a rule with
            commands: none.
        stdin: a rule with commands allows jobs that are given something to read. One without always does.
        limits: that it holds jobs to.
    """

    name: str
    effect: Effect
    rpcs: tuple[str, ...] = ()
    principals: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()
    owners: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    users: tuple[str, ...] = ()
    allow_root: bool = False
    sandboxes: tuple[str, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    env: tuple[str, ...] = ()
    workdirs: tuple[str, ...] = ()
    stdin: bool = False
    limits: tuple[Cap, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    rules: tuple[Rule, ...]


NOTHING = Policy(())


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be decided.

    Attributes:
        rpc: a name of `RPCS`.
        principal: the caller's identity.
        owner: of the job that the call names; None where it names none, or has not been read yet.
        labels: of that job.
        spec: of the job that is to be started, for Start. One that still names a profile of limits asks for these
            as well, whatever they are.
        sandbox: that this job would get.
        root: it would run as the user id 0.
    """

    rpc: str
    principal: str
    role: Role
    owner: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    spec: JobSpec | None = None
    sandbox: str = ""
    root: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, and by which rule.

    Attributes:
        rule: the name of the one that matched, or `NO_RULE`.
        problem: why it does not allow this, beyond that it denies.
        limits: of the job that is to be started, with what the rule holds it to filled in.
        prescribed: the names of the limits that the rule speaks of: these must be enforced.
        filled: the names of those that the job has not asked for.
    """

    allowed: bool
    rule: str
    problem: str = ""
    limits: Limits = NO_LIMITS
    prescribed: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()


Decide = Callable[[Request], Decision]

UNMATCHED = Decision(allowed=False, rule=NO_RULE)


def denied(request: Request, decision: Decision) -> PolicyDenied:
    """The error that tells the caller of a decision against it."""
    user = request.spec.user if request.spec else ""
    return PolicyDenied(request.rpc, decision.rule, decision.problem or (f"as the user {user}" if user else ""))


def of_a_start(principal: str, role: Role, spec: JobSpec, default_sandbox: str, *, root: bool) -> Request:
    """Whether this job may be started."""
    sandbox = spec.sandbox or default_sandbox
    return Request("Start", principal, role, principal, spec.labels, spec, sandbox, root)


def refusal(decide: Decide, request: Request, job_id: str) -> JobWorkerError | None:
    """Why a call that names a job is refused; None if it is allowed.

    Whoever may not query a job is not told that there is one. The cause of that error is the denial.
    """
    decision = decide(request)
    if decision.allowed:
        return None
    error = denied(request, decision)
    query = Request("Query", request.principal, request.role, request.owner, request.labels)
    if decide(query).allowed:
        return error
    hidden = JobNotFound(job_id)
    hidden.__cause__ = error
    return hidden


def default(host_for: tuple[str, ...], default_sandbox: str) -> Policy:
    """What holds without a policy: roles alone, and who may have the sandbox profile `host`.

    Args:
        host_for: patterns of principals.
        default_sandbox: the profile of a job that asks for none, which is everyone's.
    """
    users = Rule(NO_POLICY, Effect.DENY, ("Start",), users=("*",))
    if default_sandbox == Profile.HOST.value:
        return Policy((users, Rule("roles", Effect.ALLOW, sandboxes=PROFILES)))
    host = (Profile.HOST.value,)
    named = Rule("host-for", Effect.ALLOW, ("Start",), principals=host_for, sandboxes=host)
    others = Rule(NO_HOST, Effect.DENY, ("Start",), sandboxes=host)
    return Policy((users, *((named,) if host_for else ()), others, Rule("roles", Effect.ALLOW)))

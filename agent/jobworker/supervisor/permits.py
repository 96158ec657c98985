"""What root allows: asked again here of all that changes something, whatever the gateway has found.

A gateway that was taken over can say that any principal calls. So this holds it to what the policy allows to some
principal, and to what rules without a principal deny to all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from jobworker import policy
from jobworker.errors import InvalidField, JobWorkerError, PermissionDenied, PolicyDenied, UserDenied
from jobworker.identity import Role
from jobworker.jobs import JobRecord, JobSpec
from jobworker.kernel.spawn import User
from jobworker.policy import Decision, Request
from jobworker.settings.schema import Settings
from jobworker.supervisor import accounts
from jobworker.supervisor.accounts import Account
from jobworker.supervisor.log import Log
from jobworker.supervisor.policies import Policies
from jobworker.wire.callers import Caller


@dataclass(frozen=True, slots=True)
class Permit:
    """A start that is allowed.

    Attributes:
        spec: with the limits that the policy holds it to.
        prescribed: the names of limits that must be enforced.
        filled: the names of limits that are the policy's and not the client's.
        rule: the name of the rule that allows it.
        user: the host's user to run as; None where the job has one of its own.
    """

    spec: JobSpec
    prescribed: tuple[str, ...]
    filled: tuple[str, ...]
    rule: str
    user: User | None


class Permits:
    """Asks the policy for the registry."""

    def __init__(self, settings: Settings, policies: Policies, log: Log) -> None:
        self._sandbox = settings.isolation.default
        self._gateway_uid = settings.gateway_uid
        first = settings.jobs.first_uid
        self._own_uids = range(first, first + settings.jobs.uid_count)
        self._policies = policies
        self._log = log

    def start(self, caller: Caller, spec: JobSpec) -> Permit:
        """Whether this job may be started, and how.

        Raises:
            PermissionDenied: not with this role.
            PolicyDenied: not by the policy.
            UserDenied: not as this user.
            InvalidField: there is no such user.
        """
        self._policies.read()
        account = accounts.find(spec.user) if spec.user else None
        root = account.uid == 0 if account else spec.user == "root"
        role = _writer("Start", caller)
        request = policy.of_a_start(caller.principal, role, spec, self._sandbox, root=root)
        decision = self._policies.ready.decide(request)
        if not decision.allowed:
            raise self._told(policy.denied(request, decision), caller)
        user = self._user(spec.user, account) if spec.user else None
        held = replace(spec, limits=decision.limits)
        return Permit(held, decision.prescribed, decision.filled, decision.rule, user)

    def _user(self, name: str, account: Account | None) -> User:
        if os.geteuid() != 0:
            raise UserDenied(name, "the agent is not root, so all its jobs run as its own user")
        if account is None:
            raise InvalidField("user", f"{name!r:.60} is not in this host's /etc/passwd", "www-data")
        if account.uid == self._gateway_uid != 0:
            raise UserDenied(name, "the agent's gateway runs as it, and jobs must not be taken for that")
        if account.uid in self._own_uids:
            raise UserDenied(name, "its user id is one of those that jobs are given for themselves alone")
        return User(account.uid, account.gid, account.groups)

    def change(self, rpc: str, caller: Caller, record: JobRecord) -> None:
        """Check that this may be done to a job: `Stop`, `Signal`, `WriteStdin`, `Update` or `Delete`.

        Raises:
            PermissionDenied: not with this role.
            PolicyDenied: not by the policy.
            JobNotFound: the caller is not to know of it.
        """
        self._policies.read()
        request = Request(rpc, caller.principal, _writer(rpc, caller), record.principal, record.labels)
        if error := policy.refusal(self._policies.ready.decide, request, record.job_id):
            raise self._told(error, caller)

    def limits(self, caller: Caller, record: JobRecord, spec: JobSpec) -> None:
        """Check that a job which runs may be given new limits: those that it could be started with now.

        Args:
            caller: who wants that. The job could be started by this caller, or by who has started it: an operator
                who may start nothing tunes what others run, within what these may have.
            record: of the job.
            spec: of the job, with all limits as they would be.

        Raises:
            PolicyDenied: it could not.
        """
        root = bool(record.user) and record.uid == 0

        def start(principal: str) -> Decision:
            request = policy.of_a_start(principal, Role.WRITER, spec, self._sandbox, root=root)
            return self._policies.ready.decide(request)

        if start(caller.principal).allowed or (decision := start(record.principal)).allowed:
            return
        problem = decision.problem or "a job like this could not be started now"
        raise self._told(PolicyDenied("Update", decision.rule, problem), caller)

    def agent(self, rpc: str, caller: Caller) -> None:
        """Check that this may be done to the agent itself: `Drain` or `Undrain`.

        Raises:
            PermissionDenied: not with this role.
            PolicyDenied: not by the policy.
        """
        self._policies.read()
        request = Request(rpc, caller.principal, _writer(rpc, caller))
        decision = self._policies.ready.decide(request)
        if not decision.allowed:
            raise self._told(policy.denied(request, decision), caller)

    def _told(self, error: JobWorkerError, caller: Caller) -> JobWorkerError:
        denial = error if isinstance(error, PolicyDenied) else error.__cause__
        if isinstance(denial, PolicyDenied):
            fields = {"rpc": denial.rpc, "rule": denial.rule, "problem": denial.problem}
            self._log.warning("denied by the policy", principal=caller.principal, **fields)
        return error


def _writer(rpc: str, caller: Caller) -> Role:
    if caller.role is not Role.WRITER:
        raise PermissionDenied(rpc, Role.WRITER.value, caller.role.value if caller.role else "NONE")
    return caller.role

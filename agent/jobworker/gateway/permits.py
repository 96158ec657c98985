"""What the policy allows to callers: asked with each call before its request is read, and of the job it names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobworker import policy
from jobworker.errors import JobNotFound, PolicyDenied
from jobworker.gateway import access
from jobworker.gateway.known import Known
from jobworker.gateway.mirror import Mirror
from jobworker.gateway.policies import Policies
from jobworker.identity import Principal
from jobworker.jobs import JobSpec, check_job_id
from jobworker.policy import Request

Check = Callable[[], None]


class Permits:
    """Asks the policy for the gate and the calls.

    Args:
        sandbox: the profile of a job that asks for none.
    """

    def __init__(self, policies: Policies, mirror: Mirror, sandbox: str) -> None:
        self._policies = policies
        self._mirror = mirror
        self._sandbox = sandbox

    async def admit(self, method: str, principal: Principal) -> None:
        """Let a call through if there is a request that the caller may make by it.

        Raises:
            PolicyDenied: there is none.
            AgentUnavailable: the policy is not known.
        """
        rulebook = await self._policies.current()
        request = Request(access.rpc_of(method), principal.uri, principal.role)
        if not (decision := rulebook.decide(request)).allowed:
            raise policy.denied(request, decision)

    async def examine(self, method: str, principal: Principal, message: Any) -> Check:
        """Judge a request by the job that it names, if it names one.

        Returns:
            What makes the same judgement later, by the policy of then.

        Raises:
            PolicyDenied: the caller may not do that with this job.
            JobNotFound: there is no such job, or the caller is not to know of it.
            AgentUnavailable: whether there is one is not known at the moment.
        """
        rpc = access.rpc_of(method)
        if "job_id" not in message.DESCRIPTOR.fields_by_name:
            return lambda: self._check(Request(rpc, principal.uri, principal.role), "")
        job = await self._mirror.find(check_job_id(message.job_id))
        request = Request(rpc, principal.uri, principal.role, job.principal, job.labels)
        self._check(request, job.job_id)
        return lambda: self._check(request, job.job_id)

    def _check(self, request: Request, job_id: str) -> None:
        decide = self._policies.last.decide
        if request.owner is not None:
            error = policy.refusal(decide, request, job_id)
        else:
            decision = decide(request)
            error = None if decision.allowed else policy.denied(request, decision)
        if error:
            raise error

    def start(self, principal: Principal, spec: JobSpec) -> None:
        """Check that this job may be started, as far as that can be said here.

        Raises:
            PolicyDenied: it may not.
        """
        root = spec.user == "root"
        request = policy.of_a_start(principal.uri, principal.role, spec, self._sandbox, root=root)
        if not (decision := self._policies.last.decide(request)).allowed:
            raise policy.denied(request, decision)

    def sight(self, principal: Principal) -> Callable[[Known], bool]:
        """Which jobs a List or a Watch shows: those that the caller may query, by the policy of then."""
        rulebook = self._policies.last
        told: dict[tuple[str, tuple[tuple[str, str], ...]], bool] = {}
        keys = rulebook.label_keys()

        def sees(job: Known) -> bool:
            nonlocal rulebook, keys
            if rulebook is not self._policies.last:
                rulebook = self._policies.last
                keys = rulebook.label_keys()
                told.clear()
            # Few labels are any that rules speak of, and many jobs have the same.
            labels = tuple(label for label in job.labels if label[0] in keys)
            if (seen := told.get((job.principal, labels))) is None:
                request = Request("Query", principal.uri, principal.role, job.principal, labels)
                seen = told[job.principal, labels] = rulebook.decide(request).allowed
            return seen

        return sees


def denial(error: Exception) -> PolicyDenied | None:
    """The denial, if that is what an error stands for."""
    cause = error.__cause__ if isinstance(error, JobNotFound) else error
    return cause if isinstance(cause, PolicyDenied) else None

"""What can go wrong, as types with fields.

An error says what happened in fields; `str(error)` is the sentence a person reads, and says what to do.
Nothing here knows a transport: the gateway turns these into gRPC statuses in one table, the wire carries
them between processes by class name and fields.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

# In place of a rule's name where no rule of the policy matched.
NO_RULE = "(none)"
# Rules that hold without a policy file, by the settings that they come from, and what they say.
NO_POLICY, NO_HOST = "policy", "isolation.host_for"
_BUILT_IN = {
    NO_POLICY: "jobs run as users of the host where a policy allows it, and this agent has none (setting policy)",
    NO_HOST: "the sandbox profile host is for those whom the agent's setting isolation.host_for names",
}


@dataclass(eq=False)
class JobWorkerError(Exception):
    """The root of all errors that a caller is meant to see."""

    def __str__(self) -> str:
        return self.__class__.__name__


@dataclass(eq=False)
class InvalidField(JobWorkerError):
    """One field of a request or a configuration is wrong.

    Attributes:
        field: dotted path as the contract names it, e.g. `limits.cpu` or `args[3]`.
        problem: what is wrong with the value, with the value quoted where that is safe.
        example: a value that would be right; empty where no example helps.
    """

    field: str
    problem: str
    example: str = ""

    def __str__(self) -> str:
        hint = f"; for example {self.example}" if self.example else ""
        return f"{self.field}: {self.problem}{hint}"


@dataclass(eq=False)
class JobNotFound(JobWorkerError):
    """No job has this id on this host."""

    job_id: str

    def __str__(self) -> str:
        return f"no job {self.job_id} on this host; `worker-client list` shows the ones there are"


@dataclass(eq=False)
class JobAlreadyEnded(JobWorkerError):
    """The job has ended, so it can't be stopped, signalled or given other limits."""

    job_id: str
    end_reason: str

    def __str__(self) -> str:
        return f"job {self.job_id} has already ended ({self.end_reason}); `worker-client query` tells how"


@dataclass(eq=False)
class JobNotEnded(JobWorkerError):
    """The job has not ended, so it can't be deleted."""

    job_id: str

    def __str__(self) -> str:
        return f"job {self.job_id} has not ended; stop it first: `worker-client stop {self.job_id}`"


@dataclass(eq=False)
class MainProcessEnded(JobWorkerError):
    """The job goes on without its main process, so that can't be signalled."""

    job_id: str

    def __str__(self) -> str:
        return f"the main process of job {self.job_id} has ended; signal all of its processes (`--all`)"


@dataclass(eq=False)
class StdinEnded(JobWorkerError):
    """The job's standard input takes nothing more.

    Attributes:
        taken: bytes of it that were taken before, which the job may not have read to the last one.
        reason: why.
    """

    job_id: str
    taken: int
    reason: str

    def __str__(self) -> str:
        return f"the standard input of job {self.job_id} takes no more behind {self.taken} bytes: {self.reason}"


@dataclass(eq=False)
class StdinOffset(JobWorkerError):
    """What was to be written to a job's standard input does not begin where that has got to.

    Attributes:
        offset: where it begins.
        taken: bytes that were taken before; where to go on.
    """

    job_id: str
    offset: int
    taken: int

    def __str__(self) -> str:
        return (
            f"the standard input of job {self.job_id} has taken {self.taken} bytes, and this begins at "
            f"{self.offset}; go on from {self.taken}, unless somebody else writes as well"
        )


@dataclass(eq=False)
class StdinTooLarge(JobWorkerError):
    """A job's standard input may have no more bytes on this agent.

    Attributes:
        maximum: so many, by the setting `jobs.max_stdin`.
        taken: so many it has.
    """

    job_id: str
    maximum: int
    taken: int

    def __str__(self) -> str:
        return (
            f"the standard input of job {self.job_id} may have {self.maximum} bytes on this agent "
            f"(jobs.max_stdin), and has {self.taken}; put the data into a file"
        )


@dataclass(eq=False)
class WatchExpired(JobWorkerError):
    """What a watch would have to tell next is not known any more."""

    reason: str

    def __str__(self) -> str:
        return f"the watch cannot go on from there: {self.reason}; watch again with a snapshot"


@dataclass(eq=False)
class IdempotencyConflict(JobWorkerError):
    """The key has been used before, for something else."""

    key: str
    job_id: str

    def __str__(self) -> str:
        return f"idempotency key {self.key!r} was used for another request (job {self.job_id}); take a new key"


@dataclass(eq=False)
class StartFailed(JobWorkerError):
    """The command was not executed; nothing of the job is left, except for a process that can't be killed.

    Attributes:
        step: what was being done in the new process, e.g. `exec` or `chdir`.
        errno_name: the kernel's answer, e.g. `ENOENT`; `ETIMEDOUT` where it took too long.
        path: what it was done to; empty where there is no path.
        hint: what to do about it.
    """

    step: str
    errno_name: str
    path: str
    hint: str

    def __str__(self) -> str:
        target = f" {self.path!r}" if self.path else ""
        return f"start failed at {self.step}{target}: {self.errno_name}: {self.hint}"


@dataclass(eq=False)
class LimitUnsupported(JobWorkerError):
    """A limit was asked for that this host cannot enforce."""

    limit: str
    reason: str

    def __str__(self) -> str:
        return (
            f"limits.{self.limit} cannot be enforced on this host: {self.reason}; "
            "drop the limit (a start may also allow best effort, and goes without it then)"
        )


@dataclass(eq=False)
class LimitRefused(JobWorkerError):
    """A running job can't be given this limit; all that it has are as they were."""

    limit: str
    reason: str

    def __str__(self) -> str:
        return f"limits.{self.limit} cannot be changed: {self.reason}; nothing was changed"


@dataclass(eq=False)
class SandboxUnsupported(JobWorkerError):
    """This host lacks a part of the sandbox, and its settings do not allow for less."""

    profile: str
    part: str
    reason: str

    def __str__(self) -> str:
        return (
            f"sandbox {self.profile!r} cannot be had on this host, which lacks {self.part}: {self.reason}; "
            "take another one, or have the administrator set isolation.missing to `report`"
        )


@dataclass(eq=False)
class PolicyDenied(JobWorkerError):
    """The agent's policy does not allow this to this caller.

    Attributes:
        rpc: what was asked for.
        rule: the name of the rule that decided.
        problem: what it does not allow about it; empty if all of it.
    """

    rpc: str
    rule: str
    problem: str

    def __str__(self) -> str:
        if self.rule in _BUILT_IN:
            return _BUILT_IN[self.rule]
        about = f": {self.problem}" if self.problem else ""
        hint = "; on its host `worker-agent policy test` explains what is allowed to whom"
        if self.rule == NO_RULE:
            return f"no rule of this agent's policy allows this {self.rpc}{about}{hint}"
        return f"the rule {self.rule} of this agent's policy does not allow this {self.rpc}{about}{hint}"


@dataclass(eq=False)
class UserDenied(JobWorkerError):
    """A job cannot run as this user, whatever the policy says."""

    user: str
    problem: str

    def __str__(self) -> str:
        return f"no job can run as the user {self.user!r:.60}: {self.problem}"


@dataclass(eq=False)
class CapExceeded(JobWorkerError):
    """A cap of this agent is reached; what was asked may succeed later."""

    cap: str
    maximum: int
    retry_seconds: int

    def __str__(self) -> str:
        return f"{self.cap} may be {self.maximum} at most; try again in {self.retry_seconds} s"


# What one principal may have of each, as users are told of it.
_QUOTAS = {
    "streams": "open streams",
    "calls": "calls under way",
    "urgent_calls": "calls to Stop, Signal or health under way",
    "calls_per_second": "calls in the last second",
    "urgent_calls_per_second": "calls to Stop, Signal or health in the last second",
    "waiting_calls": "calls to Start, Update and Drain that wait for the host",
    "active_jobs": "jobs that have not ended",
    "jobs_memory": "bytes of memory as the limits of your jobs",
}


@dataclass(eq=False)
class QuotaExceeded(JobWorkerError):
    """The caller has as much of something as one principal may have; nothing was done.

    Attributes:
        quota: of what; as the agent's setting is called, if it is one.
        limit: so much.
        present: what the caller has, without what was asked for now.
        retry_ms: there will be room again after so long; 0 if that is in the caller's own hands.
    """

    quota: str
    limit: int
    present: int
    retry_ms: int

    def __str__(self) -> str:
        advice = f"try again in {self.retry_ms / 1000:g} s" if self.retry_ms else "end some of them first"
        return (
            f"you have {self.present} {_QUOTAS.get(self.quota, self.quota)}, and one principal may have "
            f"{self.limit} on this agent; {advice}"
        )


@dataclass(eq=False)
class OutputDropped(JobWorkerError):
    """The output asked for is not there to be read.

    Attributes:
        job_id: whose.
        offset: of the first byte that is not.
        reason: why.
        goes_on: where there may be output again, as an absolute offset; 0 where that is not known.
    """

    job_id: str
    offset: int
    reason: str
    goes_on: int = 0

    def __str__(self) -> str:
        return f"output of job {self.job_id} at offset {self.offset} cannot be read: {self.reason}"


@dataclass(eq=False)
class Unauthenticated(JobWorkerError):
    """The peer did not prove who it is."""

    reason: str

    def __str__(self) -> str:
        return f"not authenticated: {self.reason}"


@dataclass(eq=False)
class PermissionDenied(JobWorkerError):
    """The peer is known, but its role does not allow this."""

    method: str
    needed: str
    held: str

    def __str__(self) -> str:
        name = self.method.rpartition("/")[2]
        return f"{name} needs the role {self.needed}; your certificate carries {self.held}"


@dataclass(eq=False)
class AgentUnavailable(JobWorkerError):
    """The agent can't serve this right now, but will again."""

    reason: str

    def __str__(self) -> str:
        return f"the agent cannot serve this at the moment: {self.reason}; try again shortly"


@dataclass(eq=False)
class AgentDraining(JobWorkerError):
    """The agent takes no new jobs."""

    def __str__(self) -> str:
        return "the agent is draining and takes no new jobs; use another host, or `worker-client undrain` this one"


@dataclass(eq=False)
class HostFault(JobWorkerError):
    """The host itself failed the agent: a full disk, a missing device, a kernel that refuses."""

    operation: str
    errno_name: str
    detail: str

    @classmethod
    def of(cls, operation: str, error: OSError) -> HostFault:
        """What the kernel has answered, and about which file if it was one."""
        name = errno.errorcode.get(error.errno or 0, "?")
        return cls(operation, name, str(error.filename or error.strerror or ""))

    def __str__(self) -> str:
        return f"the host failed at {self.operation}: {self.errno_name}: {self.detail}"


@dataclass(eq=False)
class UpgradeRefused(JobWorkerError):
    """The code on disk did not prove that it can take over; the old one goes on."""

    problem: str

    def __str__(self) -> str:
        return f"the new version was refused, the old one goes on: {self.problem}"


@dataclass(eq=False)
class ProtocolError(JobWorkerError):
    """A message from another process is not one that this protocol has."""

    problem: str

    def __str__(self) -> str:
        return f"protocol error: {self.problem}"


@dataclass(eq=False)
class PkiProblem(JobWorkerError):
    """Certificates on disk are not a set that works.

    Attributes:
        path: the file or directory that is wrong.
        fix: what to do about it; empty where the problem says it all.
    """

    path: str
    problem: str
    fix: str = ""

    def __str__(self) -> str:
        advice = f"; {self.fix}" if self.fix else ""
        return f"{self.path}: {self.problem}{advice}"


@dataclass(eq=False)
class TlsProblem(JobWorkerError):
    """Why a TLS connection cannot be had, found by looking for it.

    Attributes:
        problem: what is wrong, and with which file or server.
        fix: what to do about it.
    """

    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.fix}"

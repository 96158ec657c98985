"""What gateway and supervisor say to each other: every message there is.

A request has one answer, `Failed` or the type that its docstring names. Events come unasked for, on
connections that said `Hello(subscribe=True)`. No path crosses in either direction except those that a job's
own specification holds; logs are handed over as descriptors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jobworker.jobs import Idempotency, JobRecord, JobSpec
from jobworker.limits import Limits
from jobworker.policy import Policy
from jobworker.wire.callers import Caller, CallReport
from jobworker.wire.host import HostInfo
from jobworker.wire.measures import Life, Totals

# Raised whenever a message changes; both sides refuse a peer of another version. `Control`, `Upgrade`, `Shutdown`,
# `Running`, `Done` and `Failed` stay as they are: with them a version that was installed takes over from another.
PROTOCOL = 11
# The supervisor writes so many lines without letting a job's output wait.
MAX_REPORTS = 64


# Requests.


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a connection. Answer: `Welcome`, then with `subscribe` the events.

    To a subscriber every job is reported once by `JobChanged`, then `Synced`, then what changes: all of it in the
    order of revisions.
    """

    protocol: int
    subscribe: bool


@dataclass(frozen=True, slots=True)
class Control:
    """The first message of a connection of the owner's, whatever the version of either side. Answer: `Running`.

    Attributes:
        attend: this connection is what the supervisor stays for: once the last such one has closed and no job
            is active any more, the supervisor ends. Nobody attends to a supervisor that is a system service.
    """

    attend: bool


@dataclass(frozen=True, slots=True)
class StartJob:
    """Answer: `JobReply` after exec succeeded, or of the job that the same key has started before.

    Attributes:
        dry_run: start nothing; the answer is `StartPlanned`.
    """

    caller: Caller
    spec: JobSpec
    idempotency: Idempotency = field(default_factory=Idempotency)
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class StopJob:
    """Answer: `JobReply`, when the stop is under way.

    Attributes:
        signal: the first signal's number.
        grace_ms: from the first signal to the kill.
        force: kill at once.
    """

    caller: Caller
    job_id: str
    signal: int
    grace_ms: int
    force: bool


@dataclass(frozen=True, slots=True)
class SignalJob:
    """Answer: `JobReply`, when the signal was sent.

    Attributes:
        signal: its number.
        everyone: to each process of the job, rather than to its main process.
    """

    caller: Caller
    job_id: str
    signal: int
    everyone: bool


@dataclass(frozen=True, slots=True)
class WriteStdin:
    """Answer: `StdinTaken`, at once. Where that is not all, `StdinRoom` follows when it is worth trying again.

    Attributes:
        offset: where the data begin in all that the job has to read; None for behind what was taken.
        data: at most `MAX_STDIN_BYTES`.
        end: nothing comes behind the data.
    """

    caller: Caller
    job_id: str
    offset: int | None
    data: bytes
    end: bool


@dataclass(frozen=True, slots=True)
class UpdateJob:
    """Answer: `JobReply`, when the job has the new limits.

    Attributes:
        limits: that are to change; what is not given stays.
        force: also to less memory than it uses.
    """

    caller: Caller
    job_id: str
    limits: Limits
    force: bool


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Answer: `Done`, when the ended job is not among the jobs any more."""

    caller: Caller
    job_id: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new jobs, or take them again. Answer: `Drained`, once it is written and no launch is under way."""

    caller: Caller
    draining: bool


@dataclass(frozen=True, slots=True)
class InspectJob:
    """Answer: `JobReply` with fresh usage."""

    job_id: str


@dataclass(frozen=True, slots=True)
class OpenLog:
    """Answer: `LogSegment` with two read-only descriptors, the segment and its index.

    `OutputDropped` tells where output goes on, so that nobody has to ask for each segment that is not there.
    """

    job_id: str
    segment: int


@dataclass(frozen=True, slots=True)
class FollowLog:
    """From now on send `LogGrew` for this job on this connection. Answer: `JobReply`."""

    job_id: str


@dataclass(frozen=True, slots=True)
class UnfollowLog:
    """Answer: `Done`."""

    job_id: str


@dataclass(frozen=True, slots=True)
class ReportCalls:
    """For the audit trail: calls, the oldest first, at most `MAX_REPORTS`. Answer: `Done`.

    Attributes:
        dropped: calls since the last report that there was no room for.
    """

    calls: tuple[CallReport, ...]
    dropped: int


@dataclass(frozen=True, slots=True)
class ReadPolicy:
    """Read the policy file if it looks as if it had changed, or `anyway`. Answer: `PolicyIs`, after that."""

    anyway: bool = False


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Read the limits file if it looks as if it had changed, or `anyway`. Answer: `HostIs`, after that."""

    anyway: bool = False


@dataclass(frozen=True, slots=True)
class Measure:
    """Answer: `Measures`."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End all jobs; only the supervisor's own user may. Answer: `Done`, when no job is left.

    The supervisor ends when who asked has left: until then gateways can tell of the jobs' ends.
    """


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Execute the code that is on disk now, in place, jobs untouched; only the supervisor's own user may.

    Answer: `Done` right before, or why the new code was refused.
    """


# Answers.


@dataclass(frozen=True, slots=True)
class PolicyIs:
    """The policy in force; an event as well, when that has changed.

    Attributes:
        problem: why the policy file as it is now is not in force; empty if it is.
    """

    policy: Policy
    problem: str


@dataclass(frozen=True, slots=True)
class HostIs:
    """The host, with the limits that there are now; an event as well, when these have changed."""

    host: HostInfo


@dataclass(frozen=True, slots=True)
class Welcome:
    """The supervisor's version, of the protocol and of its program, and its host.

    Attributes:
        policy: in force.
        epoch: revisions of another one say nothing about this one's.
        log_level: of the settings, as of its last reload.
    """

    protocol: int
    host: HostInfo
    version: str
    policy: PolicyIs
    epoch: str = ""
    log_level: str = "info"


@dataclass(frozen=True, slots=True)
class Running:
    """The version of the supervisor's program."""

    version: str


@dataclass(frozen=True, slots=True)
class JobReply:
    record: JobRecord


@dataclass(frozen=True, slots=True)
class StartPlanned:
    """What a start would make.

    Attributes:
        record: without an id; or of the job that the same key has started before.
        rule: of the policy, that allows it.
    """

    record: JobRecord
    rule: str


@dataclass(frozen=True, slots=True)
class StdinTaken:
    """How far a job's standard input goes.

    Attributes:
        taken: bytes of it that were taken.
        whole: all that was to be written is among them, and its end if it had one.
    """

    job_id: str
    taken: int
    whole: bool


@dataclass(frozen=True, slots=True)
class LogSegment:
    """Comes with two descriptors: the segment's bytes and its index.

    Attributes:
        start: the absolute offset of the segment's first byte.
        length: of its output, if the file has that compressed (compressed_segment.py); 0 if it has the bytes.
    """

    job_id: str
    segment: int
    start: int
    length: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    pass


@dataclass(frozen=True, slots=True)
class Drained:
    """Whether new jobs are taken.

    Attributes:
        active: ids of jobs that have not ended; none when new ones are taken.
    """

    draining: bool
    active: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Measures:
    totals: Totals
    life: Life


@dataclass(frozen=True, slots=True)
class Failed:
    """An error of jobworker.errors, by class name and fields in their order."""

    error: str
    fields: tuple[str, ...]


# Events.


@dataclass(frozen=True, slots=True)
class JobChanged:
    record: JobRecord


@dataclass(frozen=True, slots=True)
class JobRemoved:
    job_id: str
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Synced:
    """Every job that existed at the `Hello` has been reported.

    Attributes:
        revision: of the newest change.
        removed: that of the newest removal, or `began`: an earlier supervisor's are not known.
        began: this supervisor's first.
    """

    revision: int = 0
    removed: int = 0
    began: int = 0


@dataclass(frozen=True, slots=True)
class LogGrew:
    """The job's log now ends before this offset.

    Attributes:
        output_ended: and no more will come.
        lost_bytes: how many of the bytes before that could not be written: the index says which.
    """

    job_id: str
    log_bytes: int
    output_ended: bool
    lost_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StdinRoom:
    """A job's standard input has room again, or takes nothing more."""

    job_id: str


@dataclass(frozen=True, slots=True)
class DrainChanged:
    draining: bool


REQUESTS: tuple[type[Any], ...] = (
    Hello,
    Control,
    StartJob,
    StopJob,
    SignalJob,
    WriteStdin,
    UpdateJob,
    DeleteJob,
    Drain,
    InspectJob,
    OpenLog,
    FollowLog,
    UnfollowLog,
    ReportCalls,
    ReadPolicy,
    ReadLimits,
    Measure,
    Shutdown,
    Upgrade,
)
ANSWERS: tuple[type[Any], ...] = (
    Welcome,
    Running,
    JobReply,
    StartPlanned,
    StdinTaken,
    LogSegment,
    PolicyIs,
    HostIs,
    Done,
    Drained,
    Measures,
    Failed,
)
EVENTS: tuple[type[Any], ...] = (
    JobChanged,
    JobRemoved,
    Synced,
    LogGrew,
    StdinRoom,
    DrainChanged,
    PolicyIs,
    HostIs,
)

"""A process that has been cloned for a job, until it has executed the command or nothing is left of it."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from jobworker.errors import AgentUnavailable, HostFault, JobWorkerError, StartFailed
from jobworker.jobs import EndReason, Idempotency, JobRecord, JobSpec, State
from jobworker.kernel import spawn
from jobworker.kernel.confinement import Confinement
from jobworker.limits import Limits, LimitStatus
from jobworker.sandbox import Part
from jobworker.supervisor.guard import given
from jobworker.supervisor.job import Job
from jobworker.supervisor.loop import Timer
from jobworker.supervisor.main_process import STILL_TRACED
from jobworker.supervisor.stopping import Stopping
from jobworker.supervisor.surroundings import Handles, Surroundings

# Seconds from the clone to the command. That takes some milliseconds, on the busiest of hosts a second or two, and
# longer where a file system is mounted by it. With `kill_wait` it is less than gateway and clients wait: 30 s.
_LAUNCH_WAIT = 15.0

CLOSED = "it is ending, or starting anew, and takes no jobs"
_LATE = f"not done within {_LAUNCH_WAIT:g} s: a file system does not answer, or somebody has stopped the process"
_EXEC_HINTS = {
    "ENOENT": "no such file, or the interpreter of its #! line is missing; give a full path, or a PATH in env",
    "EACCES": "the job's user may not execute it; check its mode and those of the directories above it",
    "ENOEXEC": "it is not a program for this machine; a script needs a #! line",
    "E2BIG": "arguments and environment are larger than the kernel takes; put the data into a file",
    "ETXTBSY": "the file is being written",
}
_CHDIR_HINTS = {
    "ENOENT": "there is no such directory on the host",
    "ENOTDIR": "it is not a directory",
    "EACCES": "the job's user may not enter it",
}
_HINTS = {"exec": _EXEC_HINTS, "chdir": _CHDIR_HINTS}


@dataclass(frozen=True, slots=True)
class Order:
    """One start: the specification, and what was decided about it.

    Attributes:
        user: that the job will run as; None for the agent's own.
        own_uid: that user's id, if the job has it for itself alone.
        confinement: the sandbox that it is executed in.
        limits: to be set, all of which the hierarchy supports.
        report: makes the record's limits from what the kernel has.
    """

    record: JobRecord
    spec: JobSpec
    user: spawn.User | None
    own_uid: int | None
    confinement: Confinement
    limits: Limits
    idempotency: Idempotency
    report: Callable[[Limits], tuple[LimitStatus, ...]]


Answer = Callable[[Job | JobWorkerError], None]
Undone = Callable[[], None]


class Launch:
    """A process that has been cloned and has not told yet whether it could execute the command.

    If it tells that it did, there is a job (`_conclude`). If it failed, is late or is not wanted any more
    (`_fail`), it is killed; once its group is empty and it can be waited for (`_undo_when_gone`, `_on_gone`), all
    is undone and the answer given. If it does not go away (`_on_stuck`) the answer comes then, and what it holds
    is undone when it does go.

    Args:
        undos: what can be undone at any time, and what only when no process is left.
    """

    def __init__(
        self,
        around: Surroundings,
        order: Order,
        handles: Handles,
        pid: int,
        report_fd: int,
        undos: tuple[contextlib.ExitStack, contextlib.ExitStack],
        answer: Answer,
        undone: Undone,
    ) -> None:
        self._around = around
        self._order = order
        self._handles = handles
        self._pid = pid
        self._report_fd = report_fd
        self._undo, self._undo_last = undos
        self._answer = answer
        self._undone = undone
        self._said = b""
        self._error: JobWorkerError | None = None
        self._is_stuck = False
        self._again: Timer | None = None
        stuck, wait = self._on_stuck, around.kill_wait
        self._stopping = Stopping(around.loop, handles.group, EndReason.STOPPED, wait, stuck)
        around.loop.redirect(report_fd, self._on_end)
        self._deadline = around.loop.call_after(_LAUNCH_WAIT, self._too_late)

    def _hear(self) -> bool:
        """Take in what the process has said; False at the end of that."""
        try:
            data = os.read(self._report_fd, spawn.REPORT_SIZE)
        except BlockingIOError:
            return True
        self._said += data
        return bool(data)

    def _on_end(self) -> None:
        while self._hear():
            pass
        self._around.loop.forget(self._report_fd)
        report = spawn.read_report(self._said)
        executed = report.step == "exec" and report.errno is None
        # One that was killed may have come to it in the same instant.
        if executed and (self._error is None or self._has_executed(report)):
            self._conclude(report)
        else:
            self._fail(_failed(self._order.spec, report))
            self._undo_when_gone()

    def _command_pid(self, report: spawn.Report) -> int:
        # Below an init without a cgroup the command's process is another one than was cloned; in a PID namespace
        # it does not know what it is called outside.
        return self._pid if Part.PID_NAMESPACE in self._order.confinement.parts else report.pid

    def _has_executed(self, report: spawn.Report) -> bool:
        try:
            return spawn.has_executed(self._command_pid(report))
        except (FileNotFoundError, ProcessLookupError):
            # Its init has reaped it. No start shall be said to have failed whose command was executed.
            return True

    def _conclude(self, report: spawn.Report) -> None:
        started = time.monotonic()
        try:
            actual = self._handles.group.limits(self._order.limits.io_device)
        except OSError:
            # Somebody has removed the group of a job that has ended already, or the host is short of something:
            # what was read before the command was executed will do.
            actual = self._handles.limits
        record = replace(
            self._order.record,
            pid=self._command_pid(report),
            state=State.RUNNING,
            started_ns=time.time_ns(),
            limits=self._order.report(actual),
        )
        handles = replace(self._handles, limits=given(self._order.limits, actual))
        self._undo.pop_all()
        self._undo_last.pop_all()
        os.close(self._report_fd)
        self._deadline.cancel()
        self._stopping.end()
        job = Job(self._around, record, handles, started, self._order.idempotency)
        self._answer(job)
        job.announce()
        job.begin(None if self._error is None else EndReason.STOPPED)

    # Giving it up.

    def _too_late(self) -> None:
        if self._hear():
            step = spawn.read_report(self._said).step
            self._around.log.warning("a command not executed in time", job=self._order.record.job_id, step=step)
            self._fail(_error(self._order.spec, step, "ETIMEDOUT", _LATE))

    def abandon(self) -> None:
        """Do without the job."""
        self._fail(AgentUnavailable(CLOSED))

    def _fail(self, error: JobWorkerError) -> None:
        if self._error is None:
            self._error = error
            self._deadline.cancel()
            self._stopping.kill()
            # Where it is not cloned into its group, it may not have come there yet.
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._handles.pidfd, signal.SIGKILL)

    def _on_stuck(self) -> None:
        job_id = self._order.record.job_id
        self._around.audit.stuck(self._order.record)
        self._around.log.error("a process of a start that failed does not go away", job=job_id)
        self._is_stuck = True
        self._around.loop.forget(self._report_fd)
        self._undo.close()
        self._undo_when_gone()
        self._tell()

    def _undo_when_gone(self) -> None:
        # The init of a PID namespace may be a moment longer in going than the process.
        group, loop = self._handles.group, self._around.loop
        if group.populated():
            loop.watch(group.events_fd, group.events_mask, self._undo_when_gone)
        else:
            loop.forget(group.events_fd)
            # It leaves the group before it can be waited for, and may not have come there at all.
            loop.watch(self._handles.pidfd, select.EPOLLIN, self._on_gone)

    def _on_gone(self) -> None:
        self._around.loop.forget(self._handles.pidfd)
        # What is stuck is looked at anew, beside this.
        if self._again:
            self._again.cancel()
        if os.waitid(os.P_PIDFD, self._handles.pidfd, os.WEXITED | os.WNOHANG) is None:
            # Whoever traces it has not taken notice.
            self._again = self._around.loop.call_after(STILL_TRACED, self._on_gone)
            return
        self._stopping.end()
        self._undo.close()
        self._undo_last.close()
        self._undone()
        if not self._is_stuck:
            self._tell()

    def _tell(self) -> None:
        if self._error:
            self._answer(self._error)


def _failed(spec: JobSpec, report: spawn.Report) -> JobWorkerError:
    if report.errno is None:
        return _error(spec, report.step, "?", "it ended before it could execute the command")
    name = errno.errorcode.get(report.errno, str(report.errno))
    return _error(spec, report.step, name, _HINTS.get(report.step, {}).get(name, os.strerror(report.errno)))


def _error(spec: JobSpec, step: str, name: str, detail: str) -> JobWorkerError:
    if step == "exec":
        return StartFailed("exec", name, spec.command, detail)
    if step == "chdir":
        return StartFailed("chdir", name, spec.workdir, detail)
    return HostFault(f"preparing the job's process ({step})", name, detail)

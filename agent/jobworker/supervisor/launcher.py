"""From a specification to a running job, or to an error with nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from jobworker.errors import AgentUnavailable, HostFault, JobWorkerError, StartFailed
from jobworker.jobs import EndReason, Idempotency, JobRecord, JobSpec, State
from jobworker.kernel import spawn
from jobworker.kernel.cgroup.base import Group, Hierarchy
from jobworker.kernel.confinement import Confinement
from jobworker.kernel.subtree import SubtreeGroup
from jobworker.limits import Limits, LimitStatus
from jobworker.sandbox import Part
from jobworker.settings.schema import JobSettings
from jobworker.supervisor import stdin
from jobworker.supervisor.guard import given
from jobworker.supervisor.job import Job
from jobworker.supervisor.loop import Timer
from jobworker.supervisor.main_process import STILL_TRACED
from jobworker.supervisor.output import OutputLog
from jobworker.supervisor.stdin import Ends
from jobworker.supervisor.stopping import Stopping
from jobworker.supervisor.surroundings import Handles, Surroundings

_PIPE_BYTES = 512 * 1024
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


class Launcher:
    """Starts jobs; the answer comes once the command was executed, or was not in time."""

    def __init__(self, around: Surroundings, hierarchy: Hierarchy, settings: JobSettings) -> None:
        self._around = around
        self._hierarchy = hierarchy
        self._default_path = settings.default_path
        # Of this process, for those that it clones: where they are, its pid may mean nothing.
        self._supervisor = os.pidfd_open(os.getpid())
        self._dev_null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._open_files = (min(settings.open_files, most), most)
        self._under_way: dict[str, _Launch] = {}

    def launch(self, order: Order, answer: Answer, undone: Undone) -> None:
        """Start a job.

        Args:
            order: which.
            answer: called with the job, or with why there is none.
            undone: called if there is none, once nothing is left of it: before `answer`, unless a process does not
                go away.

        Raises:
            HostFault: what a job needs could not be had; nothing is left of it.
        """
        operation = "creating the job's directories"
        job_id = order.record.job_id
        with contextlib.ExitStack() as last, contextlib.ExitStack() as undo:
            try:
                self._around.store.create_job(job_id, (order.user.uid, order.user.gid) if order.user else None)
                undo.callback(self._undo, self._around.store.discard_job, job_id)
                operation = "creating the job's cgroup"
                group = self._hierarchy.create(job_id, order.limits)
                last.callback(self._around.let_go, group)
                operation = "creating the job's log"
                logs, segment_bytes = self._around.store.open_logs(job_id), order.record.segment_bytes
                log = OutputLog(logs, job_id, segment_bytes, keep=self._around.keep_log)
                undo.callback(log.close)
                log.open()
                operation = "cloning the job's process"
                handles, pid, report = self._clone(order, group, log, undo, last)
            except OSError as error:
                raise HostFault.of(operation, error) from error

            def answered(outcome: Job | JobWorkerError) -> None:
                del self._under_way[job_id]
                answer(outcome)

            undos = undo.pop_all(), last.pop_all()
            self._under_way[job_id] = _Launch(self._around, order, handles, pid, report, undos, answered, undone)

    def abandon(self) -> None:
        """Give up the starts that are under way; each is answered all the same."""
        for launch in tuple(self._under_way.values()):
            launch.abandon()

    def _undo(self, step: Callable[..., None], *arguments: str) -> None:
        try:
            step(*arguments)
        except OSError as error:
            # A disk that has failed meanwhile, say: what is left is swept at the next start.
            self._around.log.error("a start not undone in full", error=str(error))

    def _promise(self, order: Order, group: Group) -> None:
        """Have on record that the command may be executed, so that no repeated start executes it again."""
        if order.idempotency.key:
            actual = group.limits(order.limits.io_device)
            pending, held_to = replace(order.record, limits=order.report(actual)), given(order.limits, actual)
            self._around.store.save(pending, time.monotonic(), None, order.idempotency, held_to)

    def _announce(self, job_id: str) -> Callable[[int], None]:
        """Has the keeper know a process before it executes anything, whatever becomes of this one."""

        def announce(pidfd: int) -> None:
            try:
                self._around.keeper.hold_process(job_id, pidfd)
            except OSError:
                # The keeper has died; as long as the supervisor has not, it holds the job itself.
                poll = select.poll()
                poll.register(self._supervisor, select.POLLIN)
                if poll.poll(0):
                    raise

        return announce

    def _clone(
        self,
        order: Order,
        group: Group,
        log: OutputLog,
        undo: contextlib.ExitStack,
        last: contextlib.ExitStack,
    ) -> tuple[Handles, int, int]:
        """Clone the process; the handles of the job, the process, and the read end of the report."""
        with contextlib.ExitStack() as childs:
            stdout, stdout_w = _pipe(undo, childs)
            stderr, stderr_w = _pipe(undo, childs)
            if order.user is not None:
                # So that the job may open /dev/stdout and /dev/stderr by name.
                for writing in (stdout_w, stderr_w):
                    os.fchown(writing, order.user.uid, order.user.gid)
            report, report_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            childs.callback(os.close, report_w)
            undo.callback(os.close, report)
            work = self._around.store.open_work(order.record.job_id)
            childs.callback(os.close, work)
            self._around.keeper.hold_pipes(order.record.job_id, stdout, stderr)
            undo.callback(self._around.keeper.release, order.record.job_id)
            reading, ends = self._stdin(order, undo, childs)
            # Else nobody has the other one's write end, and it is at its end at once.
            errors = stdout_w if order.spec.merge_stderr else stderr_w
            pipes = spawn.Pipes(reading, stdout_w, errors, report_w)
            self._promise(order, group)
            # For EPOLLHUP alone, which always comes: what is said before that matters only if it is late. Before
            # there is a process, since one that could not be watched might have executed the command all the same.
            self._around.loop.watch(report, 0, _nobody_hears_yet)
            undo.callback(self._around.loop.forget, report)
            announce = self._announce(order.record.job_id)
            pid, pidfd = spawn.start(self._command(order, work), pipes, group, announce)
            last.callback(os.close, pidfd)
            if isinstance(group, SubtreeGroup):
                group.init_is(pid, pidfd)
        return Handles(group, log, pidfd, stdout, stderr, order.limits, stdin=ends), pid, report

    def _stdin(
        self, order: Order, undo: contextlib.ExitStack, childs: contextlib.ExitStack
    ) -> tuple[int, Ends | None]:
        """What the job reads from: nothing, a pipe that all of it is in already, or one that stays open."""
        data, ends = order.spec.stdin, None
        if order.spec.stdin_open:
            reading, ends = stdin.make(data)
            undo.callback(ends.close)
            self._around.keeper.hold_stdin(order.record.job_id, ends.pipe, ends.file)
        elif data:
            reading = _filled_pipe(data)
        else:
            return self._dev_null, None
        childs.callback(os.close, reading)
        if order.user is not None:
            # So that the job may open /dev/stdin by name.
            os.fchown(reading, order.user.uid, order.user.gid)
        return reading, ends

    def _command(self, order: Order, work_fd: int) -> spawn.Command:
        spec = order.spec
        return spawn.Command(
            paths=map(os.fsencode, _candidates(spec, self._default_path)),
            argv=tuple(map(os.fsencode, (spec.command, *spec.args))),
            env={os.fsencode(name): os.fsencode(value) for name, value in spec.env},
            own_dir_fd=work_fd,
            confinement=order.confinement,
            workdir=spec.workdir,
            user=order.user,
            open_files=self._open_files,
        )


def _nobody_hears_yet() -> None:
    """Of a report, in the round in which its process is cloned."""


def _pipe(undo: contextlib.ExitStack, childs: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose reading end, ours, does not block; the writing end is the child's."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    undo.callback(os.close, reading)
    childs.callback(os.close, writing)
    os.set_blocking(reading, False)
    with contextlib.suppress(OSError):
        # A flood and the pump take turns less often. An ordinary user's pages for pipes are limited.
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return reading, writing


def _filled_pipe(data: bytes) -> int:
    """The reading end of a pipe that holds this and its end."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        # An ordinary user's pipes may be smaller than pipe(7) says.
        os.set_blocking(writing, False)
        if os.write(writing, data) != len(data):
            raise OSError(errno.ENOBUFS, "this host's pipes are too small for the job's standard input")
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return reading


def _candidates(spec: JobSpec, default_path: str) -> Iterator[str]:
    if "/" in spec.command:
        yield spec.command
        return
    for directory in dict(spec.env).get("PATH", default_path).split(":"):
        yield f"{directory or '.'}/{spec.command}"


class _Launch:
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
            # Somebody has removed the group of a job that has ended already.
            actual = self._order.limits
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

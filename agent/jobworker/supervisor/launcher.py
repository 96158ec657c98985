"""From a specification to a running job, or to an error with nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from jobworker.errors import HostFault, JobWorkerError
from jobworker.jobs import JobSpec
from jobworker.kernel import spawn
from jobworker.kernel.cgroup.base import Group, Hierarchy
from jobworker.kernel.subtree import SubtreeGroup
from jobworker.limits import Limits
from jobworker.settings.schema import JobSettings
from jobworker.supervisor import stdin
from jobworker.supervisor.guard import given
from jobworker.supervisor.job import Job
from jobworker.supervisor.launch import Answer, Launch, Order, Undone
from jobworker.supervisor.output import OutputLog
from jobworker.supervisor.stdin import Ends
from jobworker.supervisor.surroundings import Handles, Surroundings

_PIPE_BYTES = 512 * 1024


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
        self._under_way: dict[str, Launch] = {}

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
                operation = "reading back the job's limits"
                limits = group.limits(order.limits.io_device)
                operation = "creating the job's log"
                logs, segment_bytes = self._around.store.open_logs(job_id), order.record.segment_bytes
                log = OutputLog(logs, job_id, segment_bytes, keep=self._around.keep_log)
                undo.callback(log.close)
                log.open()
                operation = "cloning the job's process"
                handles, pid, report = self._clone(order, group, limits, log, undo, last)
            except OSError as error:
                raise HostFault.of(operation, error) from error

            def answered(outcome: Job | JobWorkerError) -> None:
                del self._under_way[job_id]
                answer(outcome)

            undos = undo.pop_all(), last.pop_all()
            self._under_way[job_id] = Launch(self._around, order, handles, pid, report, undos, answered, undone)

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

    def _promise(self, order: Order, actual: Limits) -> None:
        """Have on record that the command may be executed, so that no repeated start executes it again.

        Where none can be told from another start, have the room for a record: a job that somebody has been told of
        is on record.

        Raises:
            HostFault: the disk does not take it.
        """
        pending, held_to = replace(order.record, limits=order.report(actual)), given(order.limits, actual)
        try:
            if order.idempotency.key:
                self._around.store.save(pending, time.monotonic(), None, order.idempotency, held_to)
            else:
                self._around.store.reserve(pending, held_to)
        except OSError as error:
            raise HostFault.of("writing the job's record", error) from error

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
        limits: Limits,
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
            self._promise(order, limits)
            # For EPOLLHUP alone, which always comes: what is said before that matters only if it is late. Before
            # there is a process, since one that could not be watched might have executed the command all the same.
            self._around.loop.watch(report, 0, _nobody_hears_yet)
            undo.callback(self._around.loop.forget, report)
            announce = self._announce(order.record.job_id)
            pid, pidfd = spawn.start(self._command(order, work), pipes, group, announce)
            last.callback(os.close, pidfd)
            if isinstance(group, SubtreeGroup):
                group.init_is(pid, pidfd)
        handles = Handles(group, log, pidfd, stdout, stderr, given(order.limits, limits), stdin=ends)
        return handles, pid, report

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

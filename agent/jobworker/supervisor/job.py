"""A job's life, from its first instruction until nothing of it is left.

A job ends when its main process has ended, its group is empty and its output is drained; the exit code is
known as soon as the main process has one. Whatever wakes the supervisor, `_advance` looks at how far the job
has come and does what is next, so that the order of the kernel's notifications does not matter.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jobworker.errors import JobWorkerError, MainProcessEnded, StdinEnded
from jobworker.jobs import EndReason, Idempotency, JobRecord, Source, State, Usage
from jobworker.kernel import spawn
from jobworker.limits import Limits, LimitStatus, with_changed
from jobworker.supervisor.keeper_link import End
from jobworker.supervisor.loop import Timer
from jobworker.supervisor.main_process import MainProcess
from jobworker.supervisor.pump import Pump
from jobworker.supervisor.stand_in import Stream
from jobworker.supervisor.stdin import NOT_OPEN, Stdin
from jobworker.supervisor.stopping import Stopping
from jobworker.supervisor.surroundings import Handles, Surroundings
from jobworker.wire import keeping
from jobworker.wire.callers import Caller
from jobworker.wire.handover import Held
from jobworker.wire.messages import StdinTaken, WriteStdin

DEFAULT_GRACE = 10.0
# A disk that is full may have room again.
_SAVE_AGAIN = 1.0
UNSURE = "the agent died while it was starting this job: it is not known whether the command was executed"
_UNKNOWN_END = "how it ended is not known: the keeper died before, and a kernel older than 6.15 does not tell"


class Job:
    """One running job; owns its handles.

    Attributes:
        record: what is known, as of the last change. Usage and log size are brought up to date by `inspect`.
        group: its processes.
        limits: that the group was given.
        granted: what was told of them then; the record tells what others have made of them since.
        output: what it has written.
        is_held: its end is not on record, and so its processes, pipes and group are not let go of.
    """

    def __init__(
        self, around: Surroundings, record: JobRecord, handles: Handles, started: float, idempotency: Idempotency
    ) -> None:
        self._around = around
        self.group = handles.group
        self.limits = handles.limits
        self.granted = record.limits
        self.output = handles.output
        self.output.on_refused(self._segment_stays)
        self._main = MainProcess(around.loop, handles.pidfd, self._main_has_ended, foreign=handles.foreign)
        self._pump = Pump(
            around.loop,
            around.log,
            record.job_id,
            handles.output,
            {handles.stdout: Source.STDOUT, handles.stderr: Source.STDERR},
            grew=lambda: around.grew(self),
            closed=self._advance,
            losing=self._losing,
        )
        self._stdin: Stdin | None = None
        if handles.stdin:
            self._stdin = Stdin(
                around.loop,
                record.job_id,
                handles.stdin,
                around.max_stdin,
                room=lambda: around.stdin_room(self),
                ended=self._stdin_ended,
            )
        self._stdin_writer: Caller | None = None
        self._started = started
        self._idempotency = idempotency
        # An earlier life was still starting it.
        self._unsure = record.state is State.PENDING
        self._stopping: Stopping | None = None
        self._empty = False
        self._timeout: Timer | None = None
        self._save_again: Timer | None = None
        self._on_record = True
        self.is_held = True
        self.record = record

    def announce(self) -> None:
        """A new job is there: write its first record, and tell of it."""
        self._on_record = False
        self._change()

    def put_on_record(self) -> str:
        """Have another life know of it, and of gaps in its output; what can't be written of that, or nothing."""
        if self.record.lost_bytes != self.output.lost:
            # Of segments that are gaps as a whole no file tells.
            self.record = replace(self.record, lost_bytes=self.output.lost)
            self._on_record = False
        if not self._on_record:
            self._save()
        if not self._on_record:
            return "record"
        return "" if self.output.put_on_record() else "gaps in the output"

    def begin(
        self, stop_reason: EndReason | None = None, kill_at: float | None = None, unsent: int | None = None
    ) -> None:
        """Watch over the job, newly started or adopted.

        Args:
            stop_reason: why an earlier life was stopping it, if it was.
            kill_at: when it was to be killed then, on the monotonic clock.
            unsent: the signal that it was to be sent then, and may not have been.
        """
        loop = self._around.loop
        self._pump.begin()
        if self._stdin:
            self._stdin.begin()
        self._main.begin()
        loop.watch(self.group.events_fd, self.group.events_mask, self._on_group)
        if self.record.timeout_ms:
            left = self._started + self.record.timeout_ms / 1000 - time.monotonic()
            self._timeout = loop.call_after(max(0.0, left), self._time_out)
        self.record = replace(self.record, log_bytes=self.output.size)
        if self._unsure:
            self._around.tally.started(None)
            pid = self.group.command_pid(self._main.pid)
            self._change(state=State.RUNNING, pid=pid, started_ns=self.record.created_ns)
        if stop_reason:
            self._go_on_stopping(stop_reason, kill_at, unsent)
        # What happened before we watched makes no event.
        self._on_group()

    @property
    def log_bytes(self) -> int:
        return self.output.size

    @property
    def lost_bytes(self) -> int:
        return self.output.lost

    def _losing(self) -> None:
        if self.output.failing:
            self._around.tally.output_lost()
        self._change(lost_bytes=self.output.lost)

    def _segment_stays(self, number: int, error: OSError) -> None:
        told = {"job": self.record.job_id, "segment": number, "error": str(error)}
        self._around.log.error("a segment of output can't be removed; newer ones go in its place", **told)

    # What it reads.

    def write_stdin(self, request: WriteStdin) -> StdinTaken:
        """Take what there is room for.

        Raises:
            JobWorkerError: see `Stdin.write`.
            OSError: the host has no memory for it.
        """
        if self._stdin is None:
            raise StdinEnded(self.record.job_id, self.record.stdin_bytes, NOT_OPEN)
        begins = self._stdin.taken
        whole = self._stdin.write(request.offset, request.data, end=request.end)
        if request.caller != self._stdin_writer:
            self._stdin_writer = request.caller
            self._around.audit.stdin_written(request, begins)
        return StdinTaken(self.record.job_id, self._stdin.taken, whole)

    def _stdin_ended(self, stdin: Stdin) -> None:
        self._around.audit.stdin_ended(self.record, stdin.taken, stdin.why)
        # On record first: a supervisor that finds it open there, and not at the keeper, knows that it was cut off.
        self._change(stdin_open=False, stdin_bytes=stdin.taken)
        self._around.keeper.let_go_stdin(self.record.job_id)

    # The job's processes.

    def main_ended(self, end: End) -> None:
        """The keeper has reaped the main process."""
        self._main.has_ended(end)

    def _main_has_ended(self, end: End) -> None:
        # Whatever the record is saved for from now on, the process is reaped then: nobody else knows how it ended.
        self.record = replace(self.record, **_exit_fields(end))
        self._advance()
        if self.record.state is not State.ENDED:
            # Descendants live on; the exit code is told at once.
            self._change()

    def _on_group(self) -> None:
        if not self._empty and not self.group.populated():
            # For good: what is not in the group can't get in.
            self._empty = True
            self._pump.no_writer_is_left()
            self._around.loop.forget(self.group.events_fd)
            self._advance()

    def _advance(self) -> None:
        if self._main.end is None or not self._empty:
            return
        if self._pump.is_done:
            self._finish()
        else:
            self._pump.drain()

    # Ending it.

    def stop(self, signum: int, grace: float, reason: EndReason, *, force: bool = False) -> None:
        """Signal, and kill after `grace` seconds, or at once; a stop under way can only be hastened."""
        begins = self._stopping is None
        stopping = self._stopping or self._begin_stopping(reason)
        stopping.kill_after(0 if force else grace)
        if begins:
            stopping.unsent = None if force else signum
            self._around.audit.stopping(self.record, reason)
            self._change(state=State.STOPPING)
        else:
            # It may be killed earlier now.
            self._save()
        if force:
            stopping.kill()
        elif begins:
            stopping.signal(signum)
            # That it was is on record as well: who goes on with the stop does not send it again.
            self._save()

    def _begin_stopping(self, reason: EndReason) -> Stopping:
        around = self._around
        self._stopping = Stopping(around.loop, self.group, reason, around.kill_wait, self._report_stuck)
        return self._stopping

    def _go_on_stopping(self, reason: EndReason, kill_at: float | None, unsent: int | None) -> None:
        """As an earlier life has begun: with what is left of the grace."""
        left = DEFAULT_GRACE if kill_at is None else kill_at - time.monotonic()
        stopping = self._begin_stopping(reason)
        stopping.kill_after(max(0.0, left))
        if unsent is not None:
            stopping.signal(unsent)
            self._save()

    def signal(self, signum: int, *, everyone: bool) -> None:
        """Send a signal to the main process, or to each process that there is.

        Raises:
            MainProcessEnded: there is no main process any more.
            OSError: the kernel refuses.
        """
        if everyone:
            self.group.signal_all(signum)
            return
        try:
            if self._main.end is not None:
                raise ProcessLookupError
            self.group.signal_command(self._main.fd, self.record.pid, signum)
        except ProcessLookupError:
            raise MainProcessEnded(self.record.job_id) from None

    def _report_stuck(self) -> None:
        self._around.audit.stuck(self.record)
        self._change(stuck=True, detail="killed, but a process of the job does not go away")

    def _time_out(self) -> None:
        self.stop(signal.SIGTERM, DEFAULT_GRACE, EndReason.TIMED_OUT)

    def _finish(self) -> None:
        usage = self._usage()
        self._around.loop.forget(self.group.events_fd)
        if self._stdin:
            self._stdin.job_ended()
        if self._timeout:
            self._timeout.cancel()
        if self._stopping:
            self._stopping.end()
        self._change(
            state=State.ENDED,
            ended_ns=time.time_ns(),
            end_reason=self._end_reason(usage.oom_kills),
            usage=usage,
            stuck=False,
            detail=self._end_detail(),
            log_bytes=self.output.size,
            lost_bytes=self.output.lost,
            output_ended=True,
        )
        self._around.audit.ended(self.record)
        self._around.tally.ended(self.record, time.monotonic() - self._started)
        self._around.grew(self)

    def _let_go(self) -> None:
        self.is_held = False
        self.output.close()
        self._main.close()
        self._around.let_go(self.group)
        self._around.keeper.release(self.record.job_id)
        self._around.let_go_of(self.record.job_id)

    def _end_reason(self, oom_kills: int) -> EndReason:
        record = self.record
        if self._stopping:
            return self._stopping.reason
        if oom_kills and record.exit_code != 0:
            return EndReason.OOM_KILLED
        if record.signal is not None:
            return EndReason.SIGNALED
        if self._never_executed():
            return EndReason.LOST
        return EndReason.LOST if record.exit_code is None else EndReason.EXITED

    def streams(self) -> list[Stream]:
        """What output it may still have."""
        return self._pump.streams()

    def held(self, undo: contextlib.ExitStack) -> Held:
        """What a keeper has to hold of it.

        Args:
            undo: closes what was opened for it alone.

        Raises:
            OSError: the host has no descriptor for that.
        """
        pipes = (self._pump.pipe_of(source) for source in Source)
        held = Held(*(_closed_pipe(undo) if pipe is None else pipe for pipe in pipes))
        held.stdin = self._stdin.descriptors() if self._stdin else ()
        # The process that a keeper reaps: without a cgroup that is the init above the command.
        held.pidfd, held.pid = self._main.fd, self._main.pid
        held.end = self._main.end or (keeping.RUNNING if self._main.is_child() else keeping.FOREIGN)
        return held

    def _never_executed(self) -> bool:
        return self._unsure and self.record.exit_code == spawn.NOT_EXECUTED

    def _end_detail(self) -> str:
        if self._never_executed():
            return UNSURE
        return _UNKNOWN_END if self._main.end == keeping.FOREIGN else ""

    # What is known of it.

    def inspect(self) -> JobRecord:
        """The record with usage and log size as of now."""
        size, lost, failing = self.output.size, self.output.lost, self.output.failing
        detail = f"output is being lost: {failing}" if failing else self.record.detail
        taken = self._stdin.taken if self._stdin else self.record.stdin_bytes
        usage = self._usage()
        return replace(self.record, usage=usage, log_bytes=size, lost_bytes=lost, detail=detail, stdin_bytes=taken)

    def update_limits(self, limits: Limits, changed: tuple[LimitStatus, ...], write: Callable[[], None]) -> None:
        """Give the job new limits. On record first: a supervisor that dies over it leaves what the next one sets.

        Args:
            limits: that the group will have been given, all of them.
            changed: what is to be told of those that change.
            write: has the kernel take them, or raises a JobWorkerError and has it as before.

        Raises:
            OSError: the record can't be written.
            JobWorkerError: what `write` raises. In both cases nothing has changed.
        """
        before = self.limits, self.granted, self.record
        self.limits, self.granted = limits, with_changed(self.granted, changed)
        self.record = replace(self.record, limits=with_changed(self.record.limits, changed))
        try:
            self._store_record()
            write()
        except (OSError, JobWorkerError):
            self.limits, self.granted, self.record = before
            self._save()
            raise
        self._change()

    def limits_changed(self, limits: tuple[LimitStatus, ...], *, restored: bool) -> None:
        """Somebody else has changed limits; these are what the kernel has now, with some `restored`, or none."""
        if restored:
            self._around.tally.limits_restored()
        self._change(limits=limits, limits_restored=self.record.limits_restored + restored)

    def _usage(self) -> Usage:
        try:
            return self.group.usage()
        except OSError:
            # Somebody has removed the empty cgroup: what was known last is what there is.
            return self.record.usage

    def _change(self, **changes: Any) -> None:
        self.record = replace(self.record, **changes, revision=self._around.revisions.next())
        self._save()
        self._around.changed(self)

    def _store_record(self) -> None:
        stop, started, held_to = self._stopping, self._started, self.limits
        reason, kill_at, unsent = (stop.reason, stop.kill_at, stop.unsent) if stop else (None, None, None)
        record = self.record
        if record.state is not State.ENDED:
            # What others have made of it is found again by whoever takes the job over.
            record = replace(record, limits=self.granted)
        self._around.store.save(record, started, reason, self._idempotency, held_to, kill_at, unsent)
        self._on_record = True

    def _save(self) -> None:
        try:
            self._store_record()
        except OSError as error:
            if self.record.state is not State.ENDED or not isinstance(error, FileNotFoundError):
                self._try_again_to_save(error)
                return
            # It has been removed already, as the oldest of those that are kept.
        if self._save_again:
            self._save_again.cancel()
            self._save_again = None
        if self._main.end:
            # On disk now: nobody needs the status any more.
            self._main.reap()
        if self.record.state is State.ENDED:
            self._let_go()

    def _try_again_to_save(self, error: OSError) -> None:
        if self._save_again is None:
            self._around.log.error("record not saved", job=self.record.job_id, error=str(error))
        elif self._save_again.pending:
            return
        self._save_again = self._around.loop.call_after(_SAVE_AGAIN, self._save)


def _closed_pipe(undo: contextlib.ExitStack) -> int:
    """The reading end of a pipe that nobody will write to."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    undo.callback(os.close, reading)
    os.close(writing)
    return reading


def _exit_fields(end: End) -> dict[str, Any]:
    """The record's fields for how the main process ended."""
    code, status = end
    if code == os.CLD_EXITED:
        return {"exit_code": status}
    return {"signal": status} if code in (os.CLD_KILLED, os.CLD_DUMPED) else {}

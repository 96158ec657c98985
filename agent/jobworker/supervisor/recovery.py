"""What a supervisor does before anything else: take over what an earlier life has left.

The job's directory says what was, the keeper holds what still is, the kernel says whether it runs. A job that
all three know goes on as if nothing had happened; one that was being made is undone; the rest is LOST, with
what is known of it, and nothing of it is left running. What the keeper holds comes first; the others, of which
most have long ended, are read while jobs and clients are served again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from jobworker.errors import HostFault, InvalidField, ProtocolError
from jobworker.jobs import EndReason, JobRecord, State, check_job_id
from jobworker.kernel.cgroup.base import Group, Hierarchy
from jobworker.kernel.subtree import SubtreeGroup
from jobworker.supervisor.backlog import Backlog
from jobworker.supervisor.job import UNSURE, Job
from jobworker.supervisor.keeper_link import End, HandedBack
from jobworker.supervisor.output import OutputLog
from jobworker.supervisor.registry import Registry
from jobworker.supervisor.stdin import Ends
from jobworker.supervisor.store import StoredJob
from jobworker.supervisor.surroundings import Handles, Surroundings
from jobworker.wire import sockets


class Recovery:
    """Fills an empty registry.

    Args:
        held: what the keeper holds, by job.
        told: called with the id of a job that was found after `run`.
        unflushed: called with the id of one that may not be on the disk as it is.
        whole: called when every job is known.
    """

    def __init__(
        self,
        around: Surroundings,
        registry: Registry,
        hierarchy: Hierarchy,
        held: dict[str, HandedBack],
        told: Callable[[str], None],
        unflushed: Callable[[str], None],
        whole: Callable[[], None],
    ) -> None:
        self._around = around
        self._registry = registry
        self._hierarchy = hierarchy
        self._held = held
        self._told = told
        self._unflushed = unflushed
        self._whole = whole
        self._names: list[str] = []
        self._read: dict[str, StoredJob | Exception] = {}
        self._groups: dict[str, Group] = {}
        # Their groups are their jobs' own, which may have ended since and not be on record.
        self._adopted: set[str] = set()

    def read(self) -> None:
        """Take in all that can be had without changing anything, while somebody else still moves the output."""
        self._around.store.check_format()
        self._names = self._around.store.job_ids()
        for name in self._held.keys() & set(self._names):
            stored = self._read[name] = self._load(name)
            if isinstance(stored, StoredJob) and stored.record.state is not State.ENDED:
                self._open_group(name)

    def _load(self, name: str) -> StoredJob | Exception:
        try:
            return self._around.store.load(check_job_id(name))
        except (OSError, ProtocolError, InvalidField) as error:
            return error

    def _open_group(self, name: str) -> None:
        # One that is not there is met again when the job is adopted.
        with contextlib.suppress(OSError):
            self._groups[name] = self._hierarchy.adopt(name)

    def run(self) -> None:
        """Adopt the running jobs, end what nobody looks after, and leave the rest to the registry's backlog."""
        self._around.store.mark_format()
        for name, stored in self._read.items():
            self._recover(name, stored)
        while self._groups:
            self._groups.popitem()[1].close()
        for job_id, held in self._held.items():
            # Of a job that had no directory any more, or none yet.
            self._let_go(job_id, held)
        for name in self._hierarchy.names():
            if name not in self._adopted:
                self._sweep(name)
        rest = [name for name in self._names if name not in self._read]
        self._read.clear()
        self._names.clear()
        self._around.log.info("adopted", running=len(self._registry.running))
        self._registry.backlog = Backlog(self._around.loop, rest, self._find, self._end)

    def _find(self, name: str) -> None:
        try:
            stored = self._load(name)
        except HostFault as error:
            # Put there by hand: a directory that a later version has used is not opened at all.
            stored = error
        self._recover(name, stored)
        if name in self._registry.ended:
            self._told(name)

    def _end(self) -> None:
        running, ended = len(self._registry.running), len(self._registry.ended)
        self._around.log.info("recovered", running=running, ended=ended)
        self._whole()

    def _recover(self, name: str, stored: StoredJob | Exception) -> None:
        if isinstance(stored, StoredJob):
            self._take_over(stored)
        elif isinstance(stored, FileNotFoundError):
            # Its command was not executed, or nobody has been told that it was.
            self._undo(name)
        else:
            self._quarantine(name, str(stored))

    def _quarantine(self, name: str, problem: str) -> None:
        self._around.audit.quarantined(name, problem)
        try:
            self._around.store.quarantine(name)
        except OSError as error:
            # A disk that can't be written, say. The other jobs matter more.
            self._around.log.error("not quarantined", job=name, problem=problem, error=str(error))
        else:
            self._around.log.error("quarantined", job=name, problem=problem)

    def _take_over(self, stored: StoredJob) -> None:
        record = stored.record
        self._registry.starts.keys.remember(record, stored.idempotency)
        if record.state is State.ENDED:
            self._around.audit.found_ended(record)
            # Those of another boot are before all of this one's.
            revision = record.revision if self._around.store.is_of_this_boot(stored) else 0
            self._registry.add_ended(replace(record, revision=revision), self._ended_at(stored))
            if not self._around.store.is_flushed(record.job_id):
                self._unflushed(record.job_id)
            return
        held = self._held.get(record.job_id)
        if record.state is State.PENDING and held and held.pidfd is None:
            # A process makes itself known to the keeper before it executes the command: there was none.
            self._registry.starts.keys.forget(record.job_id)
            self._undo(record.job_id)
            return
        rebooted = not self._around.store.is_of_this_boot(stored)
        if held is None or held.pidfd is None or rebooted:
            unseen = "the host was booted anew meanwhile" if rebooted else "the agent was not there to see its end"
            self._lose(stored, UNSURE if record.state is State.PENDING else unseen)
            return
        try:
            job = self._adopt(stored, held, held.pidfd)
        except OSError as error:
            self._lose(stored, f"it could not be taken over: {error}")
            return
        del self._held[record.job_id]
        self._adopted.add(record.job_id)
        self._around.audit.taken_over(record)
        self._registry.add_running(job, adopted=True)
        self._unflushed(record.job_id)
        job.begin(stored.stop_reason, stored.kill_at, stored.unsent)
        # What is on record comes first: the process was reaped then, and its id may be another one's by now.
        if end := _end_on_record(record) or held.end:
            job.main_ended(end)

    def _ended_at(self, stored: StoredJob) -> float:
        """When a job ended, on the monotonic clock.

        Of this boot: so long after its start as it ran. The wall clock may have been set since, and by a year.
        """
        now, record = time.monotonic(), stored.record
        if self._around.store.is_of_this_boot(stored):
            ran = (record.ended_ns - record.started_ns) / 1e9
            return min(now, stored.started + max(0.0, ran))
        return now - max(0.0, (time.time_ns() - record.ended_ns) / 1e9)

    def _adopt(self, stored: StoredJob, held: HandedBack, pidfd: int) -> Job:
        # What the earlier life told last of it may not be on the disk.
        record = replace(stored.record, revision=self._around.revisions.next())
        group = self._groups.pop(record.job_id, None) or self._hierarchy.adopt(record.job_id)
        if isinstance(group, SubtreeGroup):
            group.init_is(sockets.pid_of(pidfd), pidfd)
        try:
            log = self._log_of(record)
        except OSError:
            group.close()
            raise
        stdin = Ends(*held.stdin) if held.stdin else None
        if record.stdin_open and stdin is None:
            self._around.log.error("a job's standard input was cut off: nobody held it", job=record.job_id)
            record = replace(record, stdin_open=False)
        handles = Handles(
            group, log, pidfd, held.stdout, held.stderr, stored.held_to, foreign=held.foreign, stdin=stdin
        )
        return Job(self._around, record, handles, stored.started, stored.idempotency)

    def _log_of(self, record: JobRecord) -> OutputLog:
        logs, keep = self._around.store.open_logs(record.job_id), self._around.keep_log
        return OutputLog(logs, record.job_id, record.segment_bytes, keep=keep, lost=record.lost_bytes)

    def _with_its_output(self, record: JobRecord) -> JobRecord:
        """What was on record last may be of before the job wrote anything: its files tell how much there is."""
        try:
            log = self._log_of(record)
        except OSError:
            return record
        log.close()
        return replace(record, log_bytes=log.size, lost_bytes=log.lost)

    def _lose(self, stored: StoredJob, detail: str) -> None:
        record = stored.record
        self._sweep(record.job_id)
        lost = replace(
            self._with_its_output(record),
            state=State.ENDED,
            end_reason=EndReason.LOST,
            detail=detail,
            # At the latest: nothing of it is left now.
            ended_ns=time.time_ns(),
            output_ended=True,
            revision=self._around.revisions.next(),
        )
        try:
            self._around.store.save(lost, stored.started, stored.stop_reason, stored.idempotency)
        except OSError as error:
            # It is found lost again the next time.
            self._around.log.error("record not saved", job=record.job_id, error=str(error))
        self._around.audit.ended(lost)
        self._around.tally.ended(lost, None)
        self._registry.add_ended(lost, time.monotonic())
        self._around.log.warning("job lost", job=record.job_id, detail=detail)

    def _undo(self, job_id: str) -> None:
        self._around.audit.undone(job_id)
        self._sweep(job_id)
        try:
            self._around.store.discard_job(job_id)
        except OSError as error:
            self._quarantine(job_id, f"a start that was cut off can't be undone: {error}")

    def _let_go(self, job_id: str, held: HandedBack) -> None:
        for fd in (held.stdout, held.stderr, held.pidfd, *held.stdin):
            if fd is not None:
                os.close(fd)
        self._around.keeper.release(job_id)

    def _sweep(self, name: str) -> None:
        """Kill what is in a group that nobody will look after, and remove it."""
        try:
            group = self._hierarchy.adopt(name)
        except FileNotFoundError:
            with self._left_behind(name):
                self._hierarchy.discard(name)
        else:
            group.kill()
            self._remove_when_empty(group)

    def _remove_when_empty(self, group: Group) -> None:
        # What was killed is still there for as long as it takes to die.
        if group.populated():
            self._around.loop.watch(group.events_fd, group.events_mask, lambda: self._remove_when_empty(group))
            return
        self._around.loop.forget(group.events_fd)
        with self._left_behind(group.name, group.close):
            group.remove()

    @contextlib.contextmanager
    def _left_behind(self, name: str, close: Callable[[], None] = lambda: None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            close()
            self._around.log.warning("cgroup left behind", job=name, error=str(error))
            self._around.tally.cgroup_left()


def _end_on_record(record: JobRecord) -> End | None:
    """How the main process ended, if an earlier life put it on disk: it may have been reaped since."""
    if record.exit_code is not None:
        return os.CLD_EXITED, record.exit_code
    return None if record.signal is None else (os.CLD_KILLED, record.signal)

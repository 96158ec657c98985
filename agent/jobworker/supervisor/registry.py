"""All jobs of this host: what is asked of them is decided here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from jobworker.errors import (
    HostFault,
    JobAlreadyEnded,
    JobNotEnded,
    JobNotFound,
    StdinEnded,
)
from jobworker.jobs import (
    EndReason,
    JobRecord,
    State,
    check_job_id,
)
from jobworker.kernel.cgroup.base import Hierarchy
from jobworker.settings.schema import JobSettings, QuotaSettings
from jobworker.supervisor.backlog import Backlog
from jobworker.supervisor.compressor import Compressor
from jobworker.supervisor.guard import LimitGuard, different
from jobworker.supervisor.isolation import Isolation
from jobworker.supervisor.job import DEFAULT_GRACE, Job
from jobworker.supervisor.launcher import Launcher
from jobworker.supervisor.limit_profiles import Profiles
from jobworker.supervisor.log_reading import Opened, open_segment
from jobworker.supervisor.permits import Permits
from jobworker.supervisor.reclaim import MemoryAwaited
from jobworker.supervisor.retention import Retention
from jobworker.supervisor.space import Space
from jobworker.supervisor.starts import Starts
from jobworker.supervisor.stdin import JOB_ENDED
from jobworker.supervisor.surroundings import Surroundings
from jobworker.supervisor.updates import Updates
from jobworker.supervisor.users import Users
from jobworker.wire.messages import (
    DeleteJob,
    SignalJob,
    StdinTaken,
    StopJob,
    UpdateJob,
    WriteStdin,
)


class Registry:
    """Owns the running jobs and the records of the ended ones.

    Args:
        removed: called with the id of an ended job that is not kept any longer.

    Attributes:
        starts: where jobs come from.
        backlog: jobs of earlier lives that are not known yet.
        is_whole: there are none.
        running: jobs that have not ended.
        ended: the records of those that have.
        is_ending: all jobs shall end, and then the agent.
    """

    def __init__(
        self,
        settings: JobSettings,
        quotas: QuotaSettings,
        around: Surroundings,
        hierarchy: Hierarchy,
        isolation: Isolation,
        permits: Permits,
        launcher: Launcher,
        profiles: Profiles,
        removed: Callable[[str], None],
    ) -> None:
        self._store = around.store
        self.revisions = around.revisions
        self._permits = permits
        self._removed = removed
        self._audit = around.audit
        self._users = Users(settings)
        keep, give_back = self._users.keep, self._users.give_back
        # The copy that is made beside a segment, and the segment itself: it stays open if it is dropped meanwhile.
        reserved = 2 * settings.segment_bytes if settings.compress_logs else 0
        self._space = Space(settings.keep_logs, reserved)
        self._retention = Retention(
            around.loop, around.log, self._store, self._space, settings, self._forget, keep, give_back
        )
        self._compressor: Compressor | None = None
        if settings.compress_logs:
            self._compressor = Compressor(around.loop, around.log, self._store.jobs_fd, self._compressed)
        self.reclaims = around.reclaims
        self._guard = LimitGuard(around.loop, around.log, self.reclaims)
        self._when_idle: list[Callable[[], None]] = []
        self.backlog: Backlog | None = None
        self.is_whole = False
        self.is_ending = False
        self.running: dict[str, Job] = {}
        self.ended: dict[str, JobRecord] = {}
        # Ended as well, and not on record so far, for want of disk: the kernel alone knows how.
        self._unwritten: dict[str, Job] = {}
        self.starts = Starts(
            self, settings, quotas, around, hierarchy, isolation, permits, self._users, launcher, profiles
        )
        self._updates = Updates(around.store, around.log, around.audit, permits, self.starts, self.reclaims)

    # Taking in.

    def add_running(self, job: Job, *, adopted: bool = False) -> None:
        self._users.keep(job.record.uid)
        self.running[job.record.job_id] = job
        self._guard.begin(job, suspect=adopted)
        self.grew(job)

    def add_ended(self, record: JobRecord, ended_at: float) -> None:
        """Take in a job that has ended, at this time of the monotonic clock."""
        self._users.keep(record.uid)
        self.running.pop(record.job_id, None)
        self._guard.end(record.job_id)
        self._space.ends(record.job_id)
        self.ended[record.job_id] = record
        self._retention.add(record, ended_at)
        self._compress(record)

    def grew(self, job: Job) -> None:
        """Keep the books after a job has written."""
        job_id = job.record.job_id
        if job_id in self.running and self._space.grew(job_id, job.output):
            self._compress(job.record)

    def _compress(self, record: JobRecord) -> None:
        if self._compressor and (record.log_bytes > record.segment_bytes or record.job_id in self.running):
            self._compressor.add(record.job_id, record.segment_bytes)

    def _compressed(self, job_id: str, segment: int, size: int) -> None:
        if job := self.running.get(job_id):
            job.output.compressed(segment, size)
            self._space.shrank(job_id)
        elif job_id in self.ended:
            self._retention.resized(job_id)

    def end_compressor(self) -> None:
        """End the process that compresses logs, if there is one."""
        if self._compressor:
            self._compressor.end()

    def whole(self) -> None:
        """All jobs of earlier lives are known."""
        self.backlog, self.is_whole = None, True
        self._retention.begin()
        self.starts.begin()

    def _forget(self, job_id: str) -> None:
        del self.ended[job_id]
        self.starts.keys.forget(job_id)
        self._audit.removed(job_id)
        self._removed(job_id)

    def changed(self, job: Job) -> None:
        """Keep the books after a change of a job's record."""
        if job.record.state is State.ENDED:
            if job.is_held:
                self._unwritten[job.record.job_id] = job
            self.add_ended(job.record, time.monotonic())
            self.tell_idle()

    def held(self) -> dict[str, Job]:
        """Those that another life has to be handed: whose end is not on record."""
        return self.running | self._unwritten

    def let_go_of(self, job_id: str) -> None:
        """The end of a job is on record."""
        self._unwritten.pop(job_id, None)

    # Asking and stopping.

    def records(self) -> list[JobRecord]:
        return [*self.ended.values(), *(job.record for job in self.running.values())]

    def inspect(self, job_id: str) -> JobRecord:
        """A job's record as of now.

        Raises:
            JobNotFound: there is no such job.
        """
        job = self.running.get(job_id)
        return job.inspect() if job else self._ended_record(job_id)

    def _ended_record(self, job_id: str) -> JobRecord:
        if self.backlog:
            self.backlog.take(job_id)
        record = self.ended.get(job_id)
        if record is None:
            raise JobNotFound(job_id)
        return record

    def stop(self, request: StopJob) -> JobRecord:
        """Begin to stop a job, or hasten a stop that is under way.

        Raises:
            JobNotFound: there is no such job, or not for this caller.
            PolicyDenied: not by this caller.
            JobAlreadyEnded: it has ended before.
        """
        job = self._running("Stop", request)
        self._audit.stop_asked(request, again=job.record.state is State.STOPPING)
        job.stop(request.signal, request.grace_ms / 1000, EndReason.STOPPED, force=request.force)
        return job.inspect()

    def signal(self, request: SignalJob) -> JobRecord:
        """Send a signal to a job's main process, or to all of its processes.

        Raises:
            JobNotFound: there is no such job, or not for this caller.
            PolicyDenied: not by this caller.
            JobAlreadyEnded: it has ended before.
            MainProcessEnded: that has, and the job goes on.
            HostFault: the kernel refuses.
        """
        job = self._running("Signal", request)
        try:
            job.signal(request.signal, everyone=request.everyone)
        except OSError as error:
            raise HostFault.of("signalling the job", error) from error
        return job.inspect()

    def write_stdin(self, request: WriteStdin) -> StdinTaken:
        """Have a job read more, or find the end of that.

        Raises:
            JobNotFound: there is no such job, or not for this caller.
            PolicyDenied: not by this caller.
            StdinEnded, StdinOffset, StdinTooLarge: see `Stdin.write`.
            HostFault: there is no memory for it.
        """
        try:
            job = self._running("WriteStdin", request)
        except JobAlreadyEnded:
            taken = self._ended_record(request.job_id).stdin_bytes
            raise StdinEnded(request.job_id, taken, JOB_ENDED) from None
        try:
            return job.write_stdin(request)
        except OSError as error:
            raise HostFault.of("keeping what a job is to read", error) from error

    def update(self, request: UpdateJob) -> JobRecord:
        """Give a job new limits.

        Raises:
            JobNotFound: there is no such job, or not for this caller.
            PolicyDenied: not by this caller, or not these.
            JobAlreadyEnded: it has ended before.
            JobWorkerError, DiskAwaited, MemoryAwaited: see `Updates.update`.
        """
        return self._updates.update(request, self._running("Update", request))

    def reclaim(self, awaited: MemoryAwaited, then: Callable[[], None]) -> None:
        """Have the kernel take back memory of a job, and `then` called, which updates it.

        Raises:
            CapExceeded: that is under way for too many jobs.
            HostFault: there can be no helper.
        """
        job, limits = awaited.job, awaited.limits

        def settle() -> None:
            if self.running.get(job.record.job_id) is job:
                if different(job.limits, limits):
                    self._updates.put_back(job, limits, job.limits)
                self._guard.suspect(job)

        def again() -> None:
            then()
            settle()

        try:
            self.reclaims.take(job, limits, again)
        except OSError as error:
            raise HostFault.of("taking back the job's memory", error) from error
        # Of one that was late it may have the last word.
        self.reclaims.when_over(settle, job.record.job_id)

    def _running(self, rpc: str, request: StopJob | SignalJob | WriteStdin | UpdateJob) -> Job:
        """The running job that the caller may do this to."""
        job = self.running.get(request.job_id)
        record = job.record if job else self._ended_record(request.job_id)
        self._permits.change(rpc, request.caller, record)
        if job is None:
            raise JobAlreadyEnded(request.job_id, record.end_reason.value if record.end_reason else "")
        return job

    def delete(self, request: DeleteJob) -> None:
        """Remove an ended job with all its files.

        Raises:
            JobNotFound: there is no such job, or not for this caller.
            PolicyDenied: not by this caller.
            JobNotEnded: it runs, or is being started.
            HostFault: the disk refuses.
        """
        job_id = check_job_id(request.job_id)
        job = self.running.get(job_id)
        if self.starts.is_launching(job_id):
            raise JobNotEnded(job_id)
        self._permits.change("Delete", request.caller, job.record if job else self._ended_record(job_id))
        if job:
            raise JobNotEnded(job_id)
        self._audit.delete_asked(request)
        try:
            self._retention.delete(job_id)
        except OSError as error:
            raise HostFault.of("removing the job's directory", error) from error

    def open_log(self, job_id: str, segment: int) -> Opened:
        """Read-only descriptors of a segment and its index.

        Raises:
            JobNotFound: there is no such job.
            OutputDropped: there is no such segment.
        """
        job = self.running.get(job_id)
        # Not as of now: that reads what the kernel counts of a running job, and readers may ask a thousand times.
        record = job.record if job else self._ended_record(job_id)
        directory = self._store.open_logs(job_id)
        try:
            return open_segment(directory, record, segment, job.output.holdings if job else None)
        finally:
            os.close(directory)

    def end_all(self, idle: Callable[[], None]) -> None:
        """Take no more jobs, stop those that there are, and call back when none is left."""
        self.is_ending = True
        self.starts.abandon()
        self._when_idle.append(idle)
        for job in tuple(self.running.values()):
            job.stop(signal.SIGTERM, DEFAULT_GRACE, EndReason.STOPPED)
        self.tell_idle()

    def on_idle(self, callback: Callable[[], None]) -> None:
        """Call back once no job is active; at once if none is."""
        self._when_idle.append(callback)
        self.tell_idle()

    def tell_idle(self) -> None:
        """Call back who waits until no job is active, if so it is."""
        if not self.running and self.starts.is_idle:
            callbacks, self._when_idle = self._when_idle, []
            for callback in callbacks:
                callback()

"""Puts the supervisor together and runs it."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
from collections.abc import Callable

import jobworker
from jobworker import root_side
from jobworker.kernel import spawn, syscalls
from jobworker.kernel.cgroup import detect
from jobworker.kernel.cgroup.base import Hierarchy
from jobworker.kernel.subtree import SubtreeHierarchy
from jobworker.settings.schema import SOCKET_NAME, Settings
from jobworker.supervisor import stand_in, upgrade
from jobworker.supervisor.audit import Audit
from jobworker.supervisor.flusher import Flusher
from jobworker.supervisor.isolation import Isolation
from jobworker.supervisor.job import Job
from jobworker.supervisor.keeper_link import KeeperLink
from jobworker.supervisor.launcher import Launcher
from jobworker.supervisor.limit_profiles import Profiles
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.news import News
from jobworker.supervisor.permits import Permits
from jobworker.supervisor.policies import Policies
from jobworker.supervisor.reclaim import Reclaims
from jobworker.supervisor.recovery import Recovery
from jobworker.supervisor.registry import Registry
from jobworker.supervisor.requests import Requests
from jobworker.supervisor.revisions import Revisions
from jobworker.supervisor.server import Server
from jobworker.supervisor.store import Store
from jobworker.supervisor.surroundings import Surroundings
from jobworker.supervisor.tally import Tally
from jobworker.wire import handover, sockets

_NO_KEEPER = (
    "could not become a keeper: no new job is taken, and if this process died too, those that run would be lost"
)
_KEEPER_AGAIN = 1.0


class Supervisor:
    """The one process that touches jobs.

    Args:
        link_fd: the connection to the keeper.
        stand_in_fd: the connection to who has moved the output since the version before this one.
        audit_lost: lines that the version before this one could not write to the audit trails.
        parked: a service manager stores what the keeper holds, and starts another keeper when it has died.
    """

    def __init__(
        self,
        settings: Settings,
        settings_path: str,
        link_fd: int,
        *,
        parked: bool,
        stand_in_fd: int | None,
        audit_lost: tuple[int, ...],
    ) -> None:
        self._settings_path = settings_path
        self._link_fd = link_fd
        self._parked = parked
        self._leaving = False
        self._log = Log(settings.log_level)
        self._keeper = KeeperLink(link_fd)
        held = self._keeper.take_back()
        self._store = Store(settings.state_dir)
        if stand_in_fd is None:
            self._store.lock()
        self._loop = Loop()
        self._flusher = Flusher(self._loop, self._log, self._store.jobs_fd)
        self._audit = Audit(
            self._loop,
            self._log,
            settings.audit,
            self._store.open_audit,
            audit_lost,
            self._flusher.audit_changed,
        )
        self._tally = Tally(self._loop, self._log, self._store, upgraded=stand_in_fd is not None)
        self._hierarchy = _hierarchy(settings, self._store, self._log)
        around = Surroundings(
            loop=self._loop,
            log=self._log,
            store=self._store,
            keeper=self._keeper,
            audit=self._audit,
            tally=self._tally,
            revisions=Revisions(self._store.epoch),
            reclaims=Reclaims(self._loop),
            changed=self._changed,
            let_go_of=self._let_go_of,
            grew=self._grew,
            stdin_room=self._stdin_room,
            kill_wait=settings.jobs.kill_wait_ms / 1000,
            keep_log=settings.jobs.keep_log,
            max_stdin=settings.jobs.max_stdin_bytes,
        )
        launcher = Launcher(around, self._hierarchy, settings.jobs)
        isolation = Isolation(settings.isolation, self._store.jobs_path, self._hierarchy, self._log)
        self._policies = Policies(self._loop, self._log, self._store, settings, patient=bool(held))
        self._profiles = Profiles(self._loop, self._log, self._store, settings, patient=bool(held))
        permits = Permits(settings, self._policies, self._log)
        self._registry = Registry(
            settings.jobs,
            settings.quotas,
            around,
            self._hierarchy,
            isolation,
            permits,
            launcher,
            self._profiles,
            self._removed,
        )
        news = News(self._registry, self._policies)
        requests = Requests(
            self._log,
            self._audit,
            self._tally,
            self._registry,
            self._policies,
            self._profiles,
            news,
            self._upgrade,
            self._drained,
        )
        self._server = Server(
            self._loop,
            self._log,
            self._audit,
            self._registry,
            news,
            requests.answer,
            lambda: _listener(self._store.fd, settings.gateway_uid),
            settings.gateway_uid,
            patient=bool(held),
        )
        self._policies.on_change(self._server.policy_changed)
        self._profiles.on_change(self._server.host_changed)
        recovery = Recovery(
            around,
            self._registry,
            self._hierarchy,
            held,
            self._server.job_changed,
            self._flusher.changed,
            self._all_known,
        )
        recovery.read()
        if stand_in_fd is not None:
            os.close(stand_in_fd)
            self._store.lock(wait=True)
        self._store.keep_cgroup_parent(self._hierarchy.parent)
        self._audit.begin()
        recovery.run()
        self._keeper.listen(self._loop, self._process_ended, self._keeper_gone)

    def _all_known(self) -> None:
        # What is there now stays; a child that never touches it need not copy its pages.
        gc.freeze()
        self._tally.whole()
        self._registry.whole()
        self._server.whole()

    def _changed(self, job: Job) -> None:
        self._registry.changed(job)
        self._server.job_changed(job.record.job_id)
        self._flusher.changed(job.record.job_id)

    def _let_go_of(self, job_id: str) -> None:
        self._registry.let_go_of(job_id)

    def _drained(self) -> None:
        self._server.drain_changed()

    def _removed(self, job_id: str) -> None:
        self._server.job_removed(job_id)

    def _grew(self, job: Job) -> None:
        self._registry.grew(job)
        self._server.log_grew(job)
        self._flusher.changed(job.record.job_id)

    def _stdin_room(self, job: Job) -> None:
        self._server.stdin_room(job)

    def _process_ended(self, job_id: str, end: tuple[int, int]) -> None:
        if job := self._registry.running.get(job_id):
            job.main_ended(end)

    def _keeper_gone(self) -> None:
        if self._parked:
            self._log.error("the keeper is gone: leaving the jobs to the one that is started next")
            self._leave_jobs()
        else:
            self._log.error("the keeper is gone: becoming one")
            self._registry.starts.pause(self._become_keeper)

    def _leave(self) -> None:
        """The service manager starts another keeper, to which the jobs are left as they are."""
        if self._parked:
            self._log.info("leaving the jobs to the supervisor that is started next")
            self._leave_jobs()

    def _leave_jobs(self) -> None:
        self._leaving = True
        self._registry.starts.pause(self._loop.stop)

    def _become_keeper(self) -> None:
        """Have this process, the jobs' parent, go on as the keeper."""
        if self._registry.is_ending:
            return
        self._loop.end_round()
        # Once: a peer that does not read would hold up the jobs with each time that it is tried again.
        self._server.finish()
        self._audit.end("the keeper is gone")
        self._prove_keeper()

    def _prove_keeper(self, *, told: bool = False) -> None:
        """Execute the keeper's program once it is found to be good, and the host has what that takes."""

        def proven(problem: str | None) -> None:
            if problem is None:
                try:
                    self._execute_keeper()
                except OSError as error:
                    problem = str(error)
                else:
                    return
            if not told:
                self._log.error(_NO_KEEPER, error=problem)
            self._loop.call_after(_KEEPER_AGAIN, lambda: self._prove_keeper(told=True))

        command = root_side.keeper("--settings", self._settings_path, "--check", str(handover.FORMAT))
        upgrade.Proof(self._loop, command, proven)

    def _execute_keeper(self) -> None:
        """Have the keeper's program take the place of this one, and start a supervisor.

        Raises:
            OSError: it could not; everything is as it was.
        """
        if self._registry.is_ending:
            # The next supervisor would not know of that.
            return
        self._loop.end_round()
        self._audit.anchor()
        with contextlib.ExitStack() as undo:
            held = {job_id: job.held(undo) for job_id, job in self._registry.held().items()}
            # Here nobody would reap what jobs leave behind.
            undo.callback(syscalls.prctl, syscalls.PR_SET_CHILD_SUBREAPER, 0)
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
            handover.execute(
                root_side.keeper("--settings", self._settings_path, "--subreaper", "yes"),
                handover.State(0, -1, held),
            )

    def _read_again(self) -> None:
        for file in (self._policies, self._profiles):
            file.read(anyway=True)

    # Upgrades: who asked is told why there is none, or None just before this program is another one.

    def _upgrade(self, decided: Callable[[str | None], None]) -> None:
        def decide() -> None:
            self._decide_upgrade(decided)

        def proven(problem: str | None) -> None:
            if problem:
                self._refuse_upgrade(problem, decided)
            else:
                self._registry.starts.pause(lambda: self._registry.reclaims.when_over(decide))

        command = root_side.supervisor("--settings", self._settings_path, "--check", "yes")
        upgrade.Proof(self._loop, command, proven)

    def _refuse_upgrade(self, problem: str, decided: Callable[[str | None], None]) -> None:
        self._log.error("upgrade refused", problem=problem)
        decided(problem)

    def _decide_upgrade(self, decided: Callable[[str | None], None]) -> None:
        if self._registry.is_ending:
            decided("the agent is ending")
            return
        if self._keeper.is_gone:
            # Nor are starts taken again: this process is about to become one.
            self._refuse_upgrade("the keeper is gone, and nobody would hand the jobs to the new program", decided)
            return
        unknown = {job_id: job.put_on_record() for job_id, job in self._registry.held().items()}
        if lacking := [f"{job_id}, whose {what}" for job_id, what in unknown.items() if what]:
            self._registry.starts.resume()
            problem = f"the next supervisor would not know of job {lacking[0]} cannot be written"
            self._refuse_upgrade(problem, decided)
            return
        decided(None)
        self._log.info("upgrading", version=jobworker.__version__)
        self._execute_anew()

    def _execute_anew(self) -> None:
        """Have the supervisor's program, as it is installed now, take the place of this one."""
        self._loop.end_round()
        self._server.finish()
        self._keeper.upgrade()
        os.set_inheritable(self._link_fd, True)
        streams = [stream for job in self._registry.running.values() for stream in job.streams()]
        lost = ",".join(map(str, self._audit.end("upgrade")))
        self._tally.save()
        options = ["--link-fd", str(self._link_fd), "--stand-in-fd", str(stand_in.start(streams))]
        options += ["--audit-lost", lost]
        if self._parked:
            options += ["--parked", "yes"]
        command = root_side.supervisor("--settings", self._settings_path, *options)
        os.execv(command[0], command)

    def run(self, ready_fd: int | None) -> None:
        """Serve until told to end; all jobs have ended then."""
        syscalls.set_name("jw-supervisor")
        spawn.forget_inherited_signals()
        self._loop.on_signal(signal.SIGUSR2, lambda: self._upgrade(lambda _: None))
        # A terminal that goes away is nothing else to the agent.
        self._loop.on_signal(signal.SIGHUP, self._read_again)
        self._loop.on_signal(signal.SIGUSR1, self._leave)
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(signum, lambda: self._registry.end_all(self._loop.stop))
        gc.collect()
        self._keeper.ready()
        if ready_fd is not None:
            os.write(ready_fd, b"ready\n")
            os.close(ready_fd)
        self._audit.flush()
        self._audit.anchor()
        self._tally.serving()
        self._log.info("ready", version=jobworker.__version__, cgroup_mode=self._hierarchy.mode, pid=os.getpid())
        self._loop.run()
        self._log.info("ending")
        self._server.finish()
        self._audit.end("stopped")
        if not self._leaving:
            self._registry.end_compressor()
            # Else the next one may be making a job's cgroup there.
            self._hierarchy.remove()


def _listener(directory_fd: int, gateway_uid: int) -> socket.socket:
    listener = sockets.listen(directory_fd, SOCKET_NAME, 0o600)
    if gateway_uid != os.geteuid():
        os.chown(SOCKET_NAME, gateway_uid, -1, dir_fd=directory_fd)
    return listener


def _hierarchy(settings: Settings, store: Store, log: Log) -> Hierarchy:
    wanted = settings.jobs.cgroup_parent
    try:
        hierarchy = detect.hierarchy(store.instance(), wanted, store.cgroup_parent())
    except detect.NoCgroups as error:
        log.warning("jobs run without cgroups: nothing can be limited", reason=str(error))
        return SubtreeHierarchy(str(error))
    if wanted and hierarchy.parent != wanted:
        log.warning("cgroup_parent is taken at a start without jobs", wanted=wanted, present=hierarchy.parent)
    return hierarchy

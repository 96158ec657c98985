"""The policy in force: read anew when its file has changed, the last good one until then.

Whoever needs it asks each time, which costs a stat; nothing polls. The last good rules are kept as canonical JSON
in the state directory: a supervisor that comes back need not wait for them, and no crash brings back old ones.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from dataclasses import dataclass

from jobworker import codec, file_stamp, policy
from jobworker.errors import InvalidField, JobWorkerError
from jobworker.file_stamp import Stamp
from jobworker.policy import NOTHING, Decide, Policy
from jobworker.rulebook import Rulebook
from jobworker.settings.schema import Settings
from jobworker.supervisor import policy_process
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop, Timer
from jobworker.supervisor.policy_process import PolicyProcess
from jobworker.supervisor.store import Store

_PATIENCE = 15.0


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """The last good policy.

    Attributes:
        path: of its file.
        stamp: how that looked from outside.
    """

    path: str
    stamp: Stamp
    policy: Policy


class Policies:
    """Owns the policy.

    Args:
        patient: a file that can't be used keeps nobody from starting: there are jobs to be looked after.

    Raises:
        InvalidField: there is no policy that could be used.

    Attributes:
        problem: why the file as it is now is not in force; empty if it is.
        decide: by the policy in force.
    """

    def __init__(self, loop: Loop, log: Log, store: Store, settings: Settings, *, patient: bool) -> None:
        self._loop = loop
        self._log = log
        self._store = store
        self._path = settings.policy
        self._changed: Callable[[], None] = lambda: None
        self._process: PolicyProcess | None = None
        self._timer: Timer | None = None
        self._waiting: list[Callable[[], None]] = []
        self._seen: Stamp = ()
        self.problem = ""
        isolation = settings.isolation
        default = policy.default(isolation.host_for, isolation.default)
        self._use(default, Rulebook(default))
        if self._path:
            self._begin(patient=patient)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back after each change of `policy` or `problem`."""
        self._changed = callback

    def _use(self, rules: Policy, rulebook: Rulebook) -> None:
        self.policy = rules
        self.decide: Decide = rulebook.decide

    def _begin(self, *, patient: bool) -> None:
        self._seen, stored = file_stamp.of(self._path), self._stored()
        last = stored if stored and stored.path == self._path else None
        try:
            if last and last.stamp == self._seen:
                self._use(last.policy, Rulebook(last.policy))
            else:
                self._took(*policy_process.read(self._path))
        except InvalidField as error:
            if not last and not patient:
                raise
            kept = last.policy if last else NOTHING
            self._use(kept, Rulebook(kept))
            self._failed(error.problem)

    def _stored(self) -> StoredPolicy | None:
        try:
            data = self._store.load_policy()
            stored = codec.loads(StoredPolicy, data) if data else None
            if stored:
                Rulebook(stored.policy)
        except (JobWorkerError, OSError) as error:
            self._log.warning("the policy that was kept cannot be read", error=str(error))
            return None
        return stored

    def read(self, done: Callable[[], None] = lambda: None, *, anyway: bool = False) -> None:
        """Read the file if it looks as if it had changed, or `anyway`; `done` is called after that."""
        if self._process is None:
            seen = file_stamp.of(self._path) if self._path else self._seen
            if seen == self._seen and not (anyway and self._path):
                done()
                return
            self._seen = seen
            self._start()
        if self._process is None:
            done()
        else:
            self._waiting.append(done)

    def _start(self) -> None:
        try:
            process = PolicyProcess(self._path)
        except InvalidField as error:
            self._failed(error.problem)
            return
        self._process = process
        self._timer = self._loop.call_after(_PATIENCE, process.kill)
        for fd in process.pipes:
            self._loop.watch(fd, select.EPOLLIN, lambda fd=fd: self._on_output(process, fd))  # type: ignore[misc]
        self._loop.watch(process.pidfd, select.EPOLLIN, lambda: self._on_end(process))

    def _on_output(self, process: PolicyProcess, fd: int) -> None:
        if not process.pump(fd):
            self._loop.forget(fd)

    def _on_end(self, process: PolicyProcess) -> None:
        for fd in (*process.pipes, process.pidfd):
            self._loop.forget(fd)
        if self._timer:
            self._timer.cancel()
        self._process = None
        try:
            self._took(*process.result())
        except InvalidField as error:
            self._failed(error.problem)
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            # Once more if it has changed meanwhile: they have asked for what it holds now.
            self.read(done)

    def _took(self, rules: Policy, rulebook: Rulebook) -> None:
        self._use(rules, rulebook)
        self.problem = ""
        self._log.info("policy read", path=self._path, rules=len(rules.rules))
        try:
            self._store.save_policy(codec.dumps(StoredPolicy(self._path, self._seen, rules)))
        except OSError as error:
            # It is read again at the next start.
            self._log.warning("the policy is not kept", error=str(error))
        self._changed()

    def _failed(self, problem: str) -> None:
        self.problem = problem
        self._log.error("the policy file cannot be used: what was good stays in force", problem=problem)
        self._changed()

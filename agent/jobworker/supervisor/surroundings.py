"""What jobs need of their supervisor, and what holds one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobworker.kernel.cgroup.base import Group
from jobworker.limits import Limits
from jobworker.supervisor.audit import Audit
from jobworker.supervisor.keeper_link import KeeperLink
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.output import OutputLog
from jobworker.supervisor.reclaim import Reclaims
from jobworker.supervisor.revisions import Revisions
from jobworker.supervisor.stdin import Ends
from jobworker.supervisor.store import Store
from jobworker.supervisor.tally import Tally

if TYPE_CHECKING:
    from jobworker.supervisor.job import Job


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every job of a supervisor shares.

    Attributes:
        changed: called with the job after each change of its record.
        let_go_of: called with the id of a job that nothing is held of any more: its end is on record.
        grew: called with the job when it has new output, or the last of it.
        stdin_room: called with the job when its standard input has room again, or takes nothing more.
        kill_wait: seconds after a kill until the job is reported as stuck.
        keep_log: bytes of output that are kept of each job; 0 for all.
        max_stdin: bytes that may be written to a standard input; 0 for any number.
    """

    loop: Loop
    log: Log
    store: Store
    keeper: KeeperLink
    audit: Audit
    tally: Tally
    revisions: Revisions
    reclaims: Reclaims
    changed: Callable[[Job], None]
    let_go_of: Callable[[str], None]
    grew: Callable[[Job], None]
    stdin_room: Callable[[Job], None]
    kill_wait: float
    keep_log: int
    max_stdin: int

    def let_go(self, group: Group) -> None:
        """Remove a group that is empty; one that can't be removed is swept at the next start."""
        self.reclaims.when_over(lambda: self._remove(group), group.name)

    def _remove(self, group: Group) -> None:
        try:
            group.remove()
        except OSError as error:
            self.log.warning("cgroup left behind", job=group.name, error=str(error))
            self.tally.cgroup_left()
            group.close()


@dataclass(frozen=True, slots=True)
class Handles:
    """What holds a running job.

    Attributes:
        limits: that the group was given.
        foreign: its main process is neither our child nor the keeper's, which it outlived.
        stdin: what its standard input is written by, while that is open.
    """

    group: Group
    output: OutputLog
    pidfd: int
    stdout: int
    stderr: int
    limits: Limits
    foreign: bool = False
    stdin: Ends | None = None

"""What the root side counts and measures, for whoever asks with `Measure`."""

from __future__ import annotations

from dataclasses import dataclass

from jobworker.histogram import NOTHING_YET, Distribution
from jobworker.jobs import EndReason

# Upper bounds in seconds.
START_BOUNDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
RUN_BOUNDS = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0, 604_800.0)
ROUND_BOUNDS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Ended:
    """How many jobs have ended for a reason."""

    reason: EndReason
    jobs: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What there has been since the state directory was made, whoever has died or was restarted meanwhile.

    Attributes:
        started: jobs whose command was executed.
        start_failures: starts that were decided on, and came to nothing.
        ended: jobs, by reason.
        log_bytes: that jobs have written, lost ones included.
        lost_bytes: those among them that the disk did not take.
        log_gaps: how often that began for a job.
        limits_restored: how often limits of a job were set again that others had changed.
        cgroups_left: cgroups of ended jobs that could not be removed.
        lives: supervisors that were started, without upgrades.
        upgrades: of the supervisor in place.
        starting: from a start's arrival until its command was executed, by `START_BOUNDS`.
        running: from then to the job's end, by `RUN_BOUNDS`; of jobs whose end was seen.
    """

    started: int = 0
    start_failures: int = 0
    ended: tuple[Ended, ...] = ()
    log_bytes: int = 0
    lost_bytes: int = 0
    log_gaps: int = 0
    limits_restored: int = 0
    cgroups_left: int = 0
    lives: int = 0
    upgrades: int = 0
    starting: Distribution = NOTHING_YET
    running: Distribution = NOTHING_YET


@dataclass(frozen=True, slots=True)
class Life:
    """What there is to tell of the present supervisor.

    Attributes:
        serving_seconds: from its start until it served, and had the running jobs back.
        whole_seconds: until it knew the ended ones as well; 0 for not yet.
        rounds: how long rounds of its loop took, each of which everything else waits for, by `ROUND_BOUNDS`.
    """

    serving_seconds: float
    whole_seconds: float
    rounds: Distribution

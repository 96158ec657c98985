"""The agent upgraded under writing jobs: for how long no output moves, and what is lost."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterator, Sequence

from bench import agents
from bench.report import Figure, Outcome, Table, below
from bench.scale import Scale
from bench.stats import median
from jobworker.jobs import JobRecord
from jobworker.wire.output_index import RECORD
from support.root_side import RootSide, root_side

_LINES = 300
# bash waits for its pipe without another process, which hundreds of writers would spend the machine on.
_SCRIPT = (
    f'exec 3<> <(:); i=0; while [ $i -lt {_LINES} ]; do echo "line $i"; i=$((i+1)); read -t 0.1 -u 3; done; exit 7'
)
_EXPECTED = "".join(f"line {number}\n" for number in range(_LINES)).encode()
_MILLISECONDS = 100


def measure(scale: Scale) -> Outcome:
    with agents.scratch() as directory, root_side(directory) as side:
        link = side.link(subscribe=True)
        pids = side.keeper_pid, side.supervisor_pid()
        jobs = [link.start("/bin/bash", "-c", _SCRIPT) for _ in range(scale.upgraded_jobs)]
        for _ in range(scale.upgrades):
            link = side.upgrade(link)
        ended = [link.wait_ended(job.job_id) for job in jobs]
        lost = sum(link.read_log(job) != _EXPECTED or job.exit_code != 7 for job in ended)
        if (side.keeper_pid, side.supervisor_pid()) != pids:
            raise RuntimeError("a process was replaced, where it should have executed another program")
        pauses = _pauses(side, ended, scale.upgrades)
    return _outcome(scale, pauses, lost)


def _pauses(side: RootSide, jobs: Sequence[JobRecord], upgrades: int) -> list[float]:
    """The longest times, in milliseconds, in which no writer's output was taken: one for each upgrade."""
    times = sorted(time for job in jobs for time in _times(side, job.job_id))
    # At the end ever fewer jobs write.
    last_start = max(job.started_ns for job in jobs)
    first_end = min(job.ended_ns for job in jobs)
    window = [time for time in times if last_start < time < first_end]
    pauses = sorted((later - earlier) / 1e6 for earlier, later in itertools.pairwise(window))
    return pauses[-upgrades:]


def _times(side: RootSide, job_id: str) -> Iterator[int]:
    for path in glob.glob(os.path.join(side.state_dir, "jobs", job_id, "logs", "*.idx*")):
        with open(path, "rb") as file:
            yield from (time for *_, time in RECORD.iter_unpack(file.read()))


def _outcome(scale: Scale, pauses: Sequence[float], lost: int) -> Outcome:
    rows = (
        ("no output moves for, p50", f"{median(pauses):.0f} ms"),
        ("no output moves for, longest", f"{max(pauses):.0f} ms"),
        ("outputs or exit codes lost", f"{lost} of {scale.upgraded_jobs}"),
    )
    note = (
        f"{scale.upgraded_jobs} jobs that write ten lines a second each, {scale.upgrades} upgrades of keeper and "
        "supervisor meanwhile. The time is from the logs' indexes: how long no byte of any job was taken."
    )
    return Outcome(
        (Table("Upgrade in place under load", ("", ""), rows, (note,)),),
        (
            below("longest pause in an upgrade under load", max(pauses), _MILLISECONDS, " ms"),
            Figure("lost by upgrades: outputs and exit codes", "0", str(lost), lost == 0),
        ),
    )

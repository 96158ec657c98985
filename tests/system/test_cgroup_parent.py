"""Another `cgroup_parent` does not part an agent from the jobs that it has."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from jobworker.jobs import EndReason, JobRecord, State
from jobworker.settings import schema
from support.leftovers import cgroups
from support.link import Link
from support.root_side import RootSide

pytestmark = pytest.mark.root


def bases(job: JobRecord) -> set[str]:
    """What its cgroups are below, from the root of each hierarchy."""
    return {"/".join(path.rsplit("/", 3)[1:3]) for path in cgroups(job.job_id)}


def start(link: Link) -> JobRecord:
    return link.start("/bin/sleep", "1000")


def test_jobs_stay_where_they_are(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    first = start(link)
    settings, elsewhere = own_side.settings, f"test-{os.getpid()}"
    changed = replace(settings, jobs=replace(settings.jobs, cgroup_parent=f"/{elsewhere}"))
    schema.write(changed, os.path.join(os.path.dirname(own_side.state_dir), "settings.json"))
    for _ in range(2):
        link = own_side.kill_supervisor(link)
        assert link.inspect(first.job_id).state is State.RUNNING
        assert '"cgroup_parent is taken at a start without jobs"' in own_side.log()
    second = start(link)
    (base,) = bases(first)
    assert bases(second) == {base}
    for job in (first, second):
        assert link.stop(job.job_id).end_reason is EndReason.STOPPED
    link = own_side.kill_supervisor(link)
    instance = os.path.basename(base)
    assert bases(start(link)) == {f"{elsewhere}/{instance}"}
    # And of the earlier ones nothing is left.
    assert all(f"/{elsewhere}/" in path for path in cgroups(instance))

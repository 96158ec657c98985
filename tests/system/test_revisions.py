"""The order in which a supervisor tells of its jobs, to who reads late and over its own death."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from jobworker.jobs import State
from jobworker.wire.messages import DeleteJob, JobChanged, JobRemoved, Synced
from support.link import CALLER, Link
from support.root_side import root_side

pytestmark = pytest.mark.root

# Few such records fit the socket, so that the others wait on the supervisor's side.
LARGE = "x" * 60_000


def revision(event: JobChanged | JobRemoved) -> int:
    return event.record.revision if isinstance(event, JobChanged) else event.revision


def until_synced(link: Link) -> list[JobChanged]:
    events = list[JobChanged]()
    while not isinstance(event := link.receive().message, Synced):
        events.append(event)
    assert event.began <= event.removed <= event.revision
    return events


def test_changes_come_in_the_order_of_their_revisions(tmp_path: Path) -> None:
    with root_side(str(tmp_path)) as side:
        link, late = side.link(), side.link(subscribe=True)
        assert until_synced(late) == []
        jobs = [link.start("/bin/sh", "-c", "exec sleep 1000", LARGE) for _ in range(20)]
        # The first to change again are the first that were told of.
        for job in jobs:
            link.stop(job.job_id, force=True)
        for job in jobs[:3]:
            link.ask(DeleteJob(CALLER, job.job_id))
        last = link.start("/bin/sleep", "1000")
        events = list[JobChanged | JobRemoved]()
        while not (events and isinstance(events[-1], JobChanged) and events[-1].record.job_id == last.job_id):
            event = late.receive().message
            assert isinstance(event, JobChanged | JobRemoved)
            events.append(event)
        revisions = [revision(event) for event in events]
        assert revisions == sorted(set(revisions))
        ended = {
            event.record.job_id for event in events if isinstance(event, JobChanged) and event.record.ended_ns
        }
        removed = {event.job_id for event in events if isinstance(event, JobRemoved)}
        assert removed == {job.job_id for job in jobs[:3]}
        assert ended | removed == {job.job_id for job in jobs}


def test_after_a_death_what_runs_is_newer_than_all_that_was_told(tmp_path: Path) -> None:
    with root_side(str(tmp_path)) as side:
        link = side.link(subscribe=True)
        running, ended = link.start("/bin/sleep", "1000"), link.start("/bin/true")
        before = link.wait_ended(ended.job_id)
        newest = link.inspect(running.job_id).revision
        os.kill(side.supervisor_pid(), signal.SIGKILL)
        link.drain()
        after = side.reconnect(subscribe=True)
        first, second = until_synced(after)
        assert (first.record, second.record.job_id) == (before, running.job_id)
        assert second.record.revision > max(before.revision, newest)
        assert second.record.state is State.RUNNING

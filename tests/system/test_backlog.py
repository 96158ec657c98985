"""Many jobs that ended in earlier lives: running ones and clients do not wait until all are read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from jobworker.errors import IdempotencyConflict
from jobworker.jobs import EndReason, Idempotency, JobRecord, JobSpec, State, new_job_id
from jobworker.settings.schema import IsolationSettings
from jobworker.supervisor.store import Store
from jobworker.wire import messages
from support.link import CALLER, DEADLINE, Link
from support.root_side import RootSide, fresh_root_side

pytestmark = pytest.mark.root

# A supervisor needs seconds for them, in which who is slow to connect still comes early.
_MANY = 10_000


@pytest.fixture
def side() -> Iterator[RootSide]:
    # In memory, since a disk may take long to remove so many files; so jobs can't have a /dev/shm of their own.
    isolation = IsolationSettings(default="host", host_for=("*",))
    with fresh_root_side("/dev/shm", isolation=isolation, keep_ended=2 * _MANY) as running:  # noqa: S108
        yield running


def leave(side: RootSide, like: JobRecord, count: int, key: Idempotency | None = None) -> list[str]:
    """Put records like this one into the state directory, as an earlier life leaves them."""
    store, job_ids = Store(side.state_dir), [new_job_id() for _ in range(count)]
    for job_id in job_ids:
        store.create_job(job_id, None)
        record = replace(like, job_id=job_id, workdir=store.work_path(job_id), log_path=store.log_path(job_id))
        store.save(record, 0.0, None, key or Idempotency())
    os.close(store.fd)
    os.close(store.jobs_fd)
    os.close(store.removed_fd)
    return job_ids


def next_life(side: RootSide, link: Link) -> Link:
    os.kill(side.supervisor_pid(), signal.SIGKILL)
    link.drain()
    return side.reconnect(subscribe=True)


def until_synced(link: Link) -> list[object]:
    """The events up to `Synced`, which is the last of them."""
    while not link.events or not isinstance(link.events[-1], messages.Synced):
        link.events.append(link.receive().message)
    return list(link.events)


def log_events(side: RootSide) -> list[str]:
    return [json.loads(line)["event"] for line in side.log().splitlines()]


def test_who_asks_for_one_does_not_wait_for_all(side: RootSide) -> None:
    link = side.link(subscribe=True)
    running = link.start("/bin/sleep", "1000")
    ended = link.wait_ended(link.start("/bin/sh", "-c", "echo said; exit 4").job_id)
    job_ids = leave(side, ended, _MANY)
    link = next_life(side, link)
    assert link.inspect(running.job_id).state is State.RUNNING
    assert link.stop(running.job_id, force=True).end_reason is EndReason.STOPPED
    # An old one by its id, and its log.
    assert link.inspect(ended.job_id) == ended
    assert link.read_log(ended) == b"said\n"
    assert not any(isinstance(event, messages.Synced) for event in link.events)
    told = Counter(event.record.job_id for event in until_synced(link) if isinstance(event, messages.JobChanged))
    assert {*job_ids, ended.job_id, running.job_id} == set(told)
    assert all(told[job_id] == 1 for job_id in job_ids)
    events = log_events(side)
    assert events[-3:].count("recovered") == 1
    assert events[::-1].index("recovered") < events[::-1].index("ready") < events[::-1].index("adopted")


def test_a_start_waits_until_its_key_is_known(side: RootSide) -> None:
    link = side.link(subscribe=True)
    ended = link.wait_ended(link.start("/bin/true").job_id)
    leave(side, ended, 3000)
    key = Idempotency("once", "0" * 64)
    (known,) = leave(side, replace(ended, principal=CALLER.principal), 1, key)
    link = next_life(side, link)
    same = link.send(messages.StartJob(CALLER, JobSpec("/bin/true"), key))
    other = link.send(messages.StartJob(CALLER, JobSpec("/bin/true"), replace(key, digest="1" * 64)))
    fresh = link.send(messages.StartJob(CALLER, JobSpec("/bin/true")))
    # A job that runs, or has ended, can be asked for meanwhile.
    assert link.inspect(ended.job_id) == ended
    assert link.answer(same).message.record.job_id == known
    with pytest.raises(IdempotencyConflict):
        link.answer(other)
    started: JobRecord = link.answer(fresh).message.record
    assert started.uid != ended.uid, "that user's files are still there"
    assert link.wait_ended(started.job_id).exit_code == 0


def test_a_start_that_waits_is_refused_when_the_agent_ends(side: RootSide) -> None:
    link = side.link(subscribe=True)
    leave(side, link.wait_ended(link.start("/bin/true").job_id), _MANY)
    link = next_life(side, link)
    link.send(messages.StartJob(CALLER, JobSpec("/bin/sleep", ("1000",))))
    with contextlib.closing(side.link()) as owner:
        owner.ask(messages.Shutdown())
    link.drain()
    failed = [event for event in link.events if isinstance(event, messages.Failed)]
    assert [failure.error for failure in failed] == ["AgentUnavailable"]
    # It ends by itself: a signal that meets it there would be the end that is told.
    assert side.keeper.wait(DEADLINE) == 0


def test_what_nobody_holds_is_lost_and_what_is_broken_is_named(side: RootSide) -> None:
    link = side.link(subscribe=True)
    ended = link.wait_ended(link.start("/bin/true").job_id)
    running = replace(ended, state=State.RUNNING, ended_ns=0, end_reason=None, exit_code=None)
    running = replace(running, started_ns=time.time_ns(), output_ended=False)
    leave(side, ended, 100)
    (lost,) = leave(side, running, 1)
    (broken, future) = leave(side, ended, 2)
    for job_id, text in ((broken, "{"), (future, '{"format": 999}')):
        with open(os.path.join(side.state_dir, "jobs", job_id, "job.json"), "w") as file:
            file.write(text)
    link = next_life(side, link)
    assert link.inspect(lost).end_reason is EndReason.LOST
    until_synced(link)
    assert sorted(os.listdir(os.path.join(side.state_dir, "quarantine"))) == sorted([broken, future])
    problems = {
        line["job"]: line["problem"] for line in map(json.loads, side.log().splitlines()) if "problem" in line
    }
    assert "not JSON" in problems[broken]
    assert "written by a later version" in problems[future]

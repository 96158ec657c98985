"""The supervisor killed at each point of an update: what is on record is what the kernel has, in the end."""

from __future__ import annotations

import contextlib

import pytest

from jobworker.jobs import JobRecord
from jobworker.limits import Limits
from jobworker.wire import messages
from support.limit_files import kernel_limits
from support.link import CALLER, Link
from support.root_side import RootSide
from support.strace import Call, Recorder, attached, killing, needs_strace
from support.waiting import until

pytestmark = [pytest.mark.root, needs_strace]

_MIB = 1 << 20
# What the job has at its start, and what it is to have: a limit more, and others changed.
_START = Limits(memory_bytes=64 * _MIB, pids=20)
_UPDATE = Limits(cpu_millis=500, memory_bytes=128 * _MIB, pids=10)
_BEFORE = {"memory": "64M", "pids": "20"}
_AFTER = {"cpu": "50%", "memory": "128M", "pids": "10"}
# These are what leaves something behind.
_CHANGING = {"write", "renameat", "sendmsg"}


def update(link: Link, job: JobRecord) -> None:
    link.ask(messages.UpdateJob(CALLER, job.job_id, _UPDATE, force=False))


def calls_of_an_update(side: RootSide, link: Link) -> list[Call]:
    job, recorder = link.start("/bin/sleep", "1000", limits=_START), Recorder()
    with recorder.recording(side.supervisor_pid()):
        update(link, job)
    link.stop(job.job_id, force=True)
    return [call for call in recorder.calls if call.name in _CHANGING]


def settled(side: RootSide) -> Link:
    """A connection to the supervisor that lives on: one may be killed right behind its answer."""
    while True:
        with contextlib.suppress(ConnectionError):
            link = side.reconnect(subscribe=True)
            link.ask(messages.ReadLimits())
            return link


def values(record: JobRecord) -> dict[str, str]:
    return {status.name: status.value for status in record.limits}


@pytest.mark.timeout(300)
def test_killed_at_each_of_its_calls(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    seen = set()
    for call in calls_of_an_update(own_side, link):
        job = link.start("/bin/sleep", "1000", limits=_START)
        with attached(own_side.supervisor_pid(), *killing(call)):
            try:
                update(link, job)
            except ConnectionResetError:
                answered = False
            else:
                answered = True
        link = settled(own_side)
        told = values(link.inspect(job.job_id))
        assert told in (_BEFORE, _AFTER), call
        # What an update left undone is found when the job is taken over, and set.
        until(lambda job=job: kernel_limits(job), told)  # type: ignore[misc]
        assert values(link.inspect(job.job_id)) == told, call
        if answered:
            assert told == _AFTER, call
        else:
            # Asked again, it is done.
            update(link, job)
            assert kernel_limits(job) == values(link.inspect(job.job_id)) == _AFTER, call
        seen.add((told == _AFTER, answered))
        link.stop(job.job_id, force=True)
    assert {(False, False), (True, False)} <= seen

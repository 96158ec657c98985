"""Much that comes at once is done by slices of time: whoever asks for something else meanwhile is answered."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator

import pytest

from jobworker.errors import ProtocolError
from jobworker.jobs import JobSpec
from jobworker.wire import messages
from support.link import CALLER, Link
from support.root_side import RootSide, fresh_root_side
from support.waiting import until

pytestmark = pytest.mark.root

# That many things which take so many seconds each, and how often somebody else is answered at least meanwhile.
MANY, EACH, OFTEN = 30, 0.1, 5
SLOW = f"__import__('time').sleep({EACH})"
PROFILE = "version: 1\nprofiles: {it: {pids: 7}}\n"


@pytest.fixture
def side() -> Iterator[RootSide]:
    with fresh_root_side(own_package=True, limits=PROFILE) as running:
        yield running


def slow_launches(side: RootSide) -> None:
    line = '        operation = "creating the job\'s directories"\n'
    side.change("supervisor/launcher.py", line, f"{line}        {SLOW}\n")


def start_many(link: Link) -> None:
    for _ in range(MANY):
        link.send(messages.StartJob(CALLER, JobSpec("/bin/true")))


def progress(link: Link, done: Callable[[], int]) -> set[int]:
    """How many of them were done each time that somebody else was answered, until all were."""
    seen = set[int]()

    def answered() -> int:
        link.ask(messages.Measure())
        seen.add(count := done())
        return count

    until(answered, MANY)
    return seen


def launched(side: RootSide) -> int:
    return len(os.listdir(os.path.join(side.state_dir, "jobs")))


def told(link: Link) -> int:
    """Of how many jobs it has been told."""
    while select.select([link.sock], [], [], 0)[0]:
        link.events.append(link.receive().message)
    return len({event.record.job_id for event in link.events if isinstance(event, messages.JobChanged)})


def ended(link: Link) -> int:
    """How many answers to starts have come."""
    count = 0
    while count < MANY:
        count += isinstance(link.receive().message, messages.JobReply)
    return count


def test_starts_that_have_waited_until_all_jobs_were_known(side: RootSide) -> None:
    slow_launches(side)
    line = "        loop.call_after(0, self._go_on)\n"
    side.change("supervisor/backlog.py", line, line.replace("0", "1"))
    link = side.kill_supervisor(side.link(), subscribe=False)
    other = side.link()
    start_many(link)
    assert len(progress(other, lambda: launched(side))) > OFTEN
    assert ended(link) == MANY


def test_starts_that_have_waited_for_a_file_to_be_read(side: RootSide) -> None:
    slow_launches(side)
    link = side.kill_supervisor(side.link(), subscribe=True)
    other = side.link()
    side.write_limits(PROFILE.replace("7", "8"))
    start_many(link)
    assert len(progress(other, lambda: launched(side))) > OFTEN
    assert ended(link) == MANY


def test_events_that_are_read_as_fast_as_they_are_sent(side: RootSide) -> None:
    link = side.link(subscribe=True)
    for _ in range(MANY):
        link.wait_ended(link.start("/bin/true").job_id)
    line = "            job_id, removed = next(iter(self._news.items()))\n"
    side.change("supervisor/connection.py", line, f"            {SLOW}\n{line}")
    other = side.kill_supervisor(link, subscribe=False)
    link = side.link(subscribe=True)
    assert len(progress(other, lambda: told(link))) > OFTEN


def test_all_is_told_once_to_a_connection(side: RootSide) -> None:
    link = side.link(subscribe=True)
    with pytest.raises(ProtocolError, match="told once"):
        link.ask(messages.Hello(messages.PROTOCOL, subscribe=True))
    # It may greet as often as it likes.
    link.ask(messages.Hello(messages.PROTOCOL, subscribe=False))

"""What comes while a command is about to be executed: an upgrade, a disk that takes nothing, very many calls."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from jobworker.errors import QuotaExceeded, UpgradeRefused
from jobworker.jobs import EndReason, Idempotency, JobRecord, JobSpec, State
from jobworker.wire import messages
from support.callers import caller
from support.leased import Leased, leased
from support.leftovers import cgroups
from support.link import CALLER, Link
from support.root_side import RootSide, root_side

pytestmark = pytest.mark.root

NO_KEY = Idempotency()


@pytest.fixture
def side(tmp_path: Path) -> Iterator[RootSide]:
    tmp_path.chmod(0o755)
    with root_side(str(tmp_path)) as running:
        yield running


@pytest.fixture
def sleep(tmp_path: Path) -> Iterator[Leased]:
    with leased(str(tmp_path / "sleep"), "/bin/sleep") as program:
        yield program


def begin(link: Link, program: Leased, *, principal: str = CALLER.principal, key: Idempotency = NO_KEY) -> int:
    """Ask for a start; the number of the request."""
    return link.send(messages.StartJob(caller(principal), JobSpec(program.path, ("1000",)), key))


def removed(path: str) -> bool:
    """Remove a cgroup, once it is empty."""
    with contextlib.suppress(OSError):
        os.rmdir(path)
    return not os.path.exists(path)


def started(link: Link, seq: int) -> JobRecord:
    record: JobRecord = link.answer(seq).message.record
    return record


def next_link(side: RootSide, link: Link) -> Link:
    link.drain()
    return side.reconnect(subscribe=True)


@pytest.mark.parametrize("key", [NO_KEY, Idempotency("k", "k")], ids=["without a key", "with a key"])
def test_the_next_version_knows_the_job_that_it_was_waited_for(
    side: RootSide, sleep: Leased, key: Idempotency
) -> None:
    link, owner = side.link(), side.link()
    seq = begin(link, sleep, key=key)
    sleep.wait_until_asked()
    upgrade = owner.send(messages.Upgrade())
    other = side.link()
    side.wait_for(lambda: not other.takes_jobs())
    sleep.let_go()
    record = started(link, seq)
    owner.answer(upgrade)
    link = next_link(side, link)
    assert link.inspect(record.job_id).state is State.RUNNING
    assert link.stop(record.job_id, force=True).end_reason is EndReason.STOPPED
    told = link.ask(messages.Measure()).totals
    assert (told.started, sum(each.jobs for each in told.ended)) == (1, 1)


def test_the_next_supervisor_knows_the_job_that_a_dead_keeper_s_waited_for(side: RootSide, sleep: Leased) -> None:
    link, other = side.link(), side.link()
    seq = begin(link, sleep)
    sleep.wait_until_asked()
    side.kill_keeper()
    side.wait_for(lambda: not other.takes_jobs())
    sleep.let_go()
    record = started(link, seq)
    link = next_link(side, link)
    assert link.inspect(record.job_id).state is State.RUNNING
    link.stop(record.job_id, force=True)


def test_a_job_that_could_not_be_put_on_record_is_not_left_to_the_next_version(
    side: RootSide, sleep: Leased
) -> None:
    link = side.link(subscribe=True)
    seq = begin(link, sleep)
    sleep.wait_until_asked()
    (job_id,) = os.listdir(os.path.join(side.state_dir, "jobs"))
    # In the way of the record's first name, where its room is.
    obstacle = Path(side.state_dir, "jobs", job_id, "job.json.new", "x")
    obstacle.parent.unlink()
    obstacle.mkdir(parents=True)
    sleep.let_go()
    assert started(link, seq).job_id == job_id
    with pytest.raises(UpgradeRefused, match=f"would not know of job {job_id}, whose record cannot be written"):
        link.ask(messages.Upgrade())
    # All is as before.
    link.wait_ended(link.start("/bin/true").job_id)
    obstacle.rmdir()
    obstacle.parent.rmdir()
    link.ask(messages.Upgrade())
    link = next_link(side, link)
    assert link.inspect(job_id).state is State.RUNNING
    link.stop(job_id, force=True)


def test_a_job_whose_cgroup_is_removed_before_it_is_known(side: RootSide, tmp_path: Path) -> None:
    link = side.link(subscribe=True)
    supervisor = side.supervisor_pid()
    with leased(str(tmp_path / "true"), "/bin/true") as program:
        seq = begin(link, program)
        program.wait_until_asked()
        os.kill(supervisor, signal.SIGSTOP)
        (job_id,) = os.listdir(os.path.join(side.state_dir, "jobs"))
        paths = cgroups(job_id)
        assert paths
        program.let_go()
        for path in paths:
            side.wait_for(partial(removed, path))
        os.kill(supervisor, signal.SIGCONT)
    assert started(link, seq).job_id == job_id
    assert link.wait_ended(job_id).exit_code == 0
    assert side.supervisor_pid() == supervisor


def test_others_are_answered_beside_any_number_that_wait(side: RootSide, sleep: Leased) -> None:
    link, other = side.link(), side.link()
    running = link.start("/bin/sleep", "1000")
    who = [f"spiffe://test/user/{name}" for name in ("ann", "bob", "cid")]
    asked = [
        begin(link, sleep, principal=name, key=Idempotency("same", "same")) for name in who for _ in range(256)
    ]
    sleep.wait_until_asked()
    with pytest.raises(QuotaExceeded) as caught:
        link.answer(begin(link, sleep, principal=who[0], key=Idempotency("another", "another")))
    assert (caught.value.quota, caught.value.limit, caught.value.present) == ("waiting_calls", 256, 256)
    # On the same connection, as all clients of a gateway are.
    assert link.inspect(running.job_id).state is State.RUNNING
    assert link.stop(running.job_id, force=True).end_reason is EndReason.STOPPED
    sleep.let_go()
    frames = [link.receive() for _ in asked]
    assert sorted(frame.seq for frame in frames) == asked
    told = {frame.message.record.job_id for frame in frames}
    assert len(told) == len(who)
    # There is room again.
    assert started(other, begin(other, sleep, principal=who[0])).principal == who[0]
    for job_id in told:
        link.stop(job_id, force=True)

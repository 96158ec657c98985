"""A state directory whose files are damaged: the agent starts, whole jobs go on, broken ones are named."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker.errors import HostFault, JobNotFound
from jobworker.jobs import EndReason, JobRecord, State
from jobworker.wire import messages
from support.leftovers import cgroups, processes_of
from support.link import Link
from support.root_side import RootSide, root_side

pytestmark = pytest.mark.root


@pytest.fixture
def side(tmp_path: Path) -> Iterator[RootSide]:
    with root_side(str(tmp_path), segment_bytes=1 << 20) as running:
        yield running


def damage(path: Path, rng: random.Random) -> None:
    """Cut a file off somewhere, or turn one of its bits over."""
    data = bytearray(path.read_bytes())
    if not data:
        return
    at = rng.randrange(len(data))
    if rng.random() < 0.5:
        os.truncate(path, at)
    else:
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)


def files(side: RootSide, record: JobRecord) -> list[Path]:
    directory = Path(side.state_dir, "jobs", record.job_id)
    return [directory / "job.json", *sorted((directory / "logs").iterdir())]


def restart_damaged(side: RootSide, link: Link, paths: list[Path], seed: int) -> Link:
    """Kill the supervisor, and damage files before the next one reads them."""
    rng = random.Random(seed)  # noqa: S311 - to be repeated
    side.freeze_keeper()
    os.kill(side.supervisor_pid(), signal.SIGKILL)
    link.drain()
    for path in paths:
        damage(path, rng)
    side.thaw_keeper()
    return side.reconnect(subscribe=True)


def is_known(link: Link, record: JobRecord) -> bool:
    try:
        return link.inspect(record.job_id).job_id == record.job_id
    except JobNotFound:
        return False


def start_some(link: Link) -> list[JobRecord]:
    records = [link.start("/bin/sh", "-c", "echo first; echo error >&2; sleep 1000") for _ in range(6)]
    for record in records:
        link.wait_output(record.job_id)
    return records


@pytest.mark.parametrize("seed", range(4))
def test_every_file_of_some_jobs(side: RootSide, seed: int) -> None:
    link = side.link(subscribe=True)
    ended = [link.wait_ended(link.start("/bin/echo", "kept").job_id) for _ in range(4)]
    running = start_some(link)
    hurt = [*ended[:2], *running[:3]]
    link = restart_damaged(side, link, [path for record in hurt for path in files(side, record)], seed)
    assert [link.inspect(record.job_id) for record in ended[2:]] == ended[2:]
    assert [link.read_log(record) for record in ended[2:]] == [b"kept\n"] * 2
    for record in running[3:]:
        assert link.inspect(record.job_id).state is State.RUNNING
        assert link.stop(record.job_id).end_reason is EndReason.STOPPED
    assert link.wait_ended(link.start("/bin/true").job_id).exit_code == 0


def test_a_record_that_can_t_be_read_is_named_and_put_aside(side: RootSide) -> None:
    link = side.link(subscribe=True)
    running = start_some(link)
    broken = Path(side.state_dir, "jobs", running[0].job_id, "job.json")
    side.freeze_keeper()
    os.kill(side.supervisor_pid(), signal.SIGKILL)
    link.drain()
    broken.write_bytes(broken.read_bytes()[:-20])
    side.thaw_keeper()
    link = side.reconnect(subscribe=True)
    (line,) = [line for line in side.log().splitlines() if '"quarantined"' in line]
    assert json.loads(line)["job"] == running[0].job_id
    assert Path(side.state_dir, "quarantine", running[0].job_id, "logs").is_dir()
    # Nobody looks after it any more, so nothing of it is left running.
    side.wait_for(lambda: not processes_of(running[0].uid) and not cgroups(running[0].job_id))
    assert all(link.inspect(record.job_id).state is State.RUNNING for record in running[1:])


@pytest.mark.parametrize("seed", range(4))
def test_all_files_of_all_jobs(side: RootSide, seed: int) -> None:
    link = side.link(subscribe=True)
    records = [*start_some(link), *(link.wait_ended(link.start("/bin/echo", "x").job_id) for _ in range(3))]
    link = restart_damaged(side, link, [path for record in records for path in files(side, record)], seed)
    for record in records:
        if not is_known(link, record):
            assert Path(side.state_dir, "quarantine", record.job_id).is_dir()
            assert record.job_id in side.log()
    assert link.wait_ended(link.start("/bin/true").job_id).exit_code == 0


def test_a_record_that_cannot_be_opened_is_put_aside_and_the_others_go_on(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    ended, running = link.wait_ended(link.start("/bin/echo", "hi").job_id), link.start("/bin/sleep", "1000")
    record = Path(own_side.state_dir, "jobs", ended.job_id, "job.json")
    record.unlink()
    # Stands for a disk that has an error there.
    record.symlink_to("job.json")
    link = own_side.kill_supervisor(link)
    own_side.wait_for(lambda: Path(own_side.state_dir, "quarantine", ended.job_id).exists())
    assert link.inspect(running.job_id).state is State.RUNNING
    link.stop(running.job_id, force=True)


def test_a_request_that_the_disk_fails_costs_that_request(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    ended, pid = link.wait_ended(link.start("/bin/echo", "hi").job_id), own_side.supervisor_pid()
    shutil.rmtree(Path(own_side.state_dir, "jobs", ended.job_id))
    with pytest.raises(HostFault, match="OpenLog"):
        link.ask(messages.OpenLog(ended.job_id, 0))
    assert own_side.supervisor_pid() == pid

"""What the output of all jobs takes of the disk stays within `keep_logs`, however many flood it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobworker.errors import OutputDropped
from jobworker.jobs import JobRecord
from jobworker.supervisor.output import LONE_BYTES
from jobworker.wire.messages import OpenLog
from jobworker.wire.output_index import DROPPED
from support.disks import on_disk
from support.link import Link
from support.root_side import RootSide

pytestmark = pytest.mark.root

SEGMENT = 1 << 20
SHARE = 24 * SEGMENT
# One round of the loop beyond it; and records, audit trails, and a page for what is no whole one.
MOST = SHARE + LONE_BYTES + SEGMENT


def used(side: RootSide) -> int:
    """The bytes that are taken of the disk that the agent has for itself, at one moment."""
    disk = os.statvfs(side.state_dir)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


@contextlib.contextmanager
def watched(side: RootSide) -> Iterator[list[int]]:
    """How much is taken, again and again, as long as it lasts."""
    seen, over = [used(side)], threading.Event()

    def watch() -> None:
        while not over.wait(0.0005):
            seen.append(used(side))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def agent(directory: Path, **jobs: Any) -> Iterator[RootSide]:
    with on_disk(directory, "size=64m", segment_bytes=SEGMENT, keep_logs=SHARE, **jobs) as side:
        yield side


def run(link: Link, script: str) -> JobRecord:
    return link.wait_ended(link.start("/bin/sh", "-c", script).job_id)


def ids(side: RootSide) -> set[str]:
    return set(os.listdir(os.path.join(side.state_dir, "jobs")))


@pytest.mark.parametrize("compress", [False, True])
def test_many_floods_stay_within_it(tmp_path: Path, compress: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    with agent(tmp_path, compress_logs=compress) as side:
        link = side.link(subscribe=True)
        before = [run(link, "head -c 2000000 /dev/zero") for _ in range(3)]
        with watched(side) as seen:
            script = "yes | head -c 30000000; head -c 10000000 /dev/urandom; exec sleep 1000"
            floods = [link.start("/bin/sh", "-c", script) for _ in range(6)]
            side.wait_for(lambda: all(link.inspect(flood.job_id).log_bytes == 40_000_000 for flood in floods))
        assert max(seen) <= MOST
        assert max(seen) > SHARE // 2
        assert {record.job_id for record in before} <= ids(side), "floods do not drive out what has ended before"
        assert [link.stop(flood.job_id).lost_bytes for flood in floods] == [0] * 6


def test_the_flood_loses_its_own_and_says_so(tmp_path: Path) -> None:
    with agent(tmp_path) as side:
        link = side.link(subscribe=True)
        quiet = link.start("/bin/sh", "-c", "yes | head -c 3000000; exec sleep 1000")
        flood = run(link, "yes | head -c 100000000")
        link.stop(quiet.job_id)
        assert link.read_log(link.inspect(quiet.job_id)) == b"y\n" * 1_500_000
        with pytest.raises(OutputDropped) as caught:
            link.ask(OpenLog(flood.job_id, 0))
        assert caught.value.reason == DROPPED
        with link.answer(link.send(OpenLog(flood.job_id, flood.log_bytes // SEGMENT))).fds as newest:
            assert len(newest) == 2


def test_a_segment_that_can_t_be_removed_is_told_of_and_the_share_is_kept(tmp_path: Path) -> None:
    with agent(tmp_path) as side:
        link = side.link(subscribe=True)
        wait = "while [ ! -e go ]; do sleep 0.05; done"
        script = f"yes | head -c 5000000; {wait}; yes | head -c 60000000; exec sleep 1000"
        flood = link.start("/bin/sh", "-c", script)
        side.wait_for(lambda: link.inspect(flood.job_id).log_bytes == 5_000_000)
        directory = Path(side.state_dir, "jobs", flood.job_id)
        segment = directory / "logs" / f"job_{flood.job_id}.log.1"
        segment.unlink()
        segment.mkdir()
        with watched(side) as seen:
            (directory / "work" / "go").touch()
            side.wait_for(lambda: link.inspect(flood.job_id).log_bytes == 65_000_000)
        assert max(seen) <= MOST
        (told,) = [json.loads(line) for line in side.log().splitlines() if "can't be removed" in line]
        assert (told["job"], told["segment"]) == (flood.job_id, 1)


def test_ended_jobs_give_way_to_running_ones_down_to_half(tmp_path: Path) -> None:
    with agent(tmp_path) as side:
        link = side.link(subscribe=True)
        ended = [run(link, f"yes | head -c {3 * SEGMENT}") for _ in range(6)]
        assert {record.job_id for record in ended} <= ids(side)
        with watched(side) as seen:
            flood = link.start(
                "/bin/sh", "-c", "for i in $(seq 40); do yes | head -c 2000000; sleep 0.05; done; sleep 1000"
            )
            side.wait_for(lambda: ended[0].job_id not in ids(side))
            side.wait_for(lambda: link.inspect(flood.job_id).log_bytes == 80_000_000)
        assert max(seen) <= MOST
        assert {record.job_id for record in ended[-3:]} <= ids(side)
        link.stop(flood.job_id)


def test_it_holds_for_a_supervisor_that_takes_over(tmp_path: Path) -> None:
    with agent(tmp_path) as side:
        link = side.link(subscribe=True)
        flood = link.start("/bin/sh", "-c", "yes | head -c 40000000; exec sleep 1000")
        side.wait_for(lambda: link.inspect(flood.job_id).log_bytes == 40_000_000)
        ended = run(link, f"yes | head -c {SEGMENT}")
        os.kill(side.supervisor_pid(), 9)
        link = side.reconnect(subscribe=True)
        with watched(side) as seen:
            other = run(link, "yes | head -c 60000000")
        assert max(seen) <= MOST
        assert {ended.job_id, other.job_id} <= ids(side)
        link.stop(flood.job_id)

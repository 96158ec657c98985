"""Ended jobs are kept by number, age, output and records; of those that go nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest

from jobworker.errors import CapExceeded, HostFault, JobNotFound
from jobworker.jobs import Idempotency, JobRecord, JobSpec
from jobworker.wire.messages import DeleteJob, JobRemoved, StartJob
from support.callers import caller
from support.link import CALLER, Link
from support.root_side import RootSide, root_side
from support.strace import attached, needs_strace, without_processes

pytestmark = pytest.mark.root

PRINCIPAL = "spiffe://test/user/w"


def run(link: Link, script: str) -> JobRecord:
    return link.wait_ended(link.start("/bin/sh", "-c", script).job_id)


def wait_removed(link: Link, job_id: str) -> None:
    link.wait_event(lambda event: isinstance(event, JobRemoved) and event.job_id == job_id)


def directories(side: RootSide) -> list[str]:
    return sorted(os.listdir(os.path.join(side.state_dir, "jobs")))


def wait_until_removed(side: RootSide) -> None:
    side.wait_for(lambda: not os.listdir(os.path.join(side.state_dir, "removed")))


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    with root_side(str(tmp_path), keep_ended=3) as side:
        link, watching = side.link(subscribe=True), side.link(subscribe=True)
        records = [run(link, f"echo {i}; echo x > file") for i in range(5)]
        running = link.start("/bin/sleep", "1000")
        for record in records[:2]:
            wait_removed(watching, record.job_id)
            with pytest.raises(JobNotFound):
                link.inspect(record.job_id)
        assert directories(side) == sorted(record.job_id for record in (*records[2:], running))
        assert [link.read_log(record) for record in records[2:]] == [b"2\n", b"3\n", b"4\n"]
        wait_until_removed(side)


def test_they_go_when_they_have_too_much_output(tmp_path: Path) -> None:
    with root_side(str(tmp_path), keep_logs=5_000_000, segment_bytes=1 << 16) as side:
        link, watching = side.link(subscribe=True), side.link(subscribe=True)
        large = [run(link, "head -c 2000000 /dev/zero") for _ in range(2)]
        small = run(link, "echo x")
        assert len(directories(side)) == 3
        third = run(link, "head -c 2000000 /dev/zero")
        wait_removed(watching, large[0].job_id)
        assert directories(side) == sorted(record.job_id for record in (large[1], small, third))


@pytest.mark.parametrize("args", [("x" * 100_000,), ("xy",) * 2_000])
def test_they_go_when_their_records_take_too_much_memory(tmp_path: Path, args: tuple[str, ...]) -> None:
    with root_side(str(tmp_path), keep_records_bytes=260_000) as side:
        link, watching = side.link(subscribe=True), side.link(subscribe=True)
        large = [link.wait_ended(link.start("/bin/true", *args).job_id) for _ in range(2)]
        small = [run(link, "echo x") for _ in range(5)]
        assert len(directories(side)) == 7
        large.append(link.wait_ended(link.start("/bin/true", *args).job_id))
        wait_removed(watching, large[0].job_id)
        assert directories(side) == sorted(record.job_id for record in (*large[1:], *small))


def test_a_flood_keeps_to_its_share_of_the_disk(tmp_path: Path) -> None:
    share = 4 * 1024**2
    with root_side(str(tmp_path), segment_bytes=1024**2, keep_log=share) as side:
        link = side.link(subscribe=True)
        record = run(link, "head -c 100000000 /dev/zero")
        assert (record.exit_code, record.log_bytes, record.lost_bytes) == (0, 100_000_000, 0)
        logs = Path(side.state_dir, "jobs", record.job_id, "logs")
        assert sum(path.stat().st_size for path in logs.glob("*.log*")) <= share


def test_they_go_after_their_time(tmp_path: Path) -> None:
    with root_side(str(tmp_path), keep_ms=300) as side:
        link, watching = side.link(subscribe=True), side.link(subscribe=True)
        records = [run(link, "exit 0") for _ in range(3)]
        for record in records:
            wait_removed(watching, record.job_id)
        assert time.time_ns() - records[-1].ended_ns >= 300_000_000
        assert directories(side) == []


def test_a_clock_that_is_set_makes_no_job_older(tmp_path: Path) -> None:
    with root_side(str(tmp_path), keep_ms=24 * 3600 * 1000) as side:
        link = side.link(subscribe=True)
        recent, of_last_year = [run(link, "exit 0").job_id for _ in range(2)]
        side.close()
        # The clock is set ahead by a year, which is as if all that is on record were of the year before.
        for job_id in (recent, of_last_year):
            path = Path(side.state_dir, "jobs", job_id, "job.json")
            stored = json.loads(path.read_text())
            for moment in ("created_ns", "started_ns", "ended_ns"):
                stored["record"][moment] -= 365 * 24 * 3600 * 10**9
            if job_id == of_last_year:
                stored["boot_id"] = "0" * 36
            path.write_text(json.dumps(stored))
        side.restart()
        side.wait_for(lambda: directories(side) == [recent])
        wait_until_removed(side)
        assert side.link().inspect(recent).job_id == recent


def test_what_had_to_go_meanwhile_goes_at_the_next_start(tmp_path: Path) -> None:
    with root_side(str(tmp_path), keep_ended=3) as side:
        link = side.link(subscribe=True)
        records = [run(link, "echo x > file") for _ in range(3)]
        side.restart(keep_ended=1)
        side.wait_for(lambda: len(directories(side)) == 1)
        wait_until_removed(side)
        link = side.link()
        assert directories(side) == [records[-1].job_id]
        assert link.inspect(records[-1].job_id) == records[-1]


def test_a_removal_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    with root_side(str(tmp_path)) as side:
        left = Path(side.state_dir, "removed", "k7f3-9m2q-x4tz-b1cd.1900000000", "work", "deep")
        left.mkdir(parents=True)
        (left / "file").write_text("x")
        side.restart()
        wait_until_removed(side)


def test_one_that_somebody_has_removed_keeps_no_other(tmp_path: Path) -> None:
    with root_side(str(tmp_path), keep_ended=2, uid_count=5) as side:
        link, watching = side.link(subscribe=True), side.link(subscribe=True)
        records = [run(link, "echo x") for _ in range(2)]
        for record in records:
            shutil.rmtree(Path(side.state_dir, "jobs", record.job_id))
        # By hand, and by number.
        link.ask(DeleteJob(CALLER, records[1].job_id))
        wait_removed(watching, records[1].job_id)
        records += [run(link, "echo x") for _ in range(3)]
        for record in (records[0], records[2]):
            wait_removed(watching, record.job_id)
        wait_until_removed(side)
        assert directories(side) == sorted(record.job_id for record in records[-2:])
        # Nobody's files are theirs any more.
        assert {start_when_possible(side, link).uid for _ in range(3)} >= {record.uid for record in records[:2]}


def test_one_that_can_t_be_removed_keeps_no_other(tmp_path: Path) -> None:
    with root_side(str(tmp_path), keep_ended=1) as side:
        link, watching = side.link(subscribe=True), side.link(subscribe=True)
        first = run(link, "echo x")
        in_the_way = Path(side.state_dir, "removed", f"{first.job_id}.{first.uid}")
        (in_the_way / "file").mkdir(parents=True)
        others = [run(link, "echo x") for _ in range(3)]
        for record in others[:2]:
            wait_removed(watching, record.job_id)
        assert directories(side) == sorted(record.job_id for record in (first, others[2]))
        assert side.log().count("ended job not removed") == 1
        with pytest.raises(HostFault, match="ENOTEMPTY"):
            link.ask(DeleteJob(CALLER, first.job_id))
        shutil.rmtree(in_the_way)
        link.ask(DeleteJob(CALLER, first.job_id))
        assert directories(side) == [others[2].job_id]


def test_without_the_place_for_removed_ones_a_job_s_user_is_no_other_s(tmp_path: Path) -> None:
    with root_side(str(tmp_path), uid_count=1) as side:
        link = side.link(subscribe=True)
        record = run(link, "echo x")
        os.rmdir(Path(side.state_dir, "removed"))
        with pytest.raises(HostFault, match="ENOENT"):
            link.ask(DeleteJob(CALLER, record.job_id))
        with pytest.raises(CapExceeded):
            link.start("/bin/true")
        os.mkdir(Path(side.state_dir, "removed"))


@needs_strace
def test_a_removal_waits_for_a_process(tmp_path: Path) -> None:
    with root_side(str(tmp_path)) as side:
        link = side.link(subscribe=True)
        records, pid = [run(link, "echo x > file") for _ in range(2)], side.supervisor_pid()
        with without_processes(pid) as tries:
            for record in records:
                link.ask(DeleteJob(CALLER, record.job_id))
            side.wait_for(lambda: tries() > 1)
        wait_until_removed(side)
        assert side.supervisor_pid() == pid
        assert side.log().count("no remover could be started") == 1


@needs_strace
def test_a_disk_that_does_not_tell_what_is_left(tmp_path: Path) -> None:
    with root_side(str(tmp_path), uid_count=1) as side:
        link = side.link(subscribe=True)
        record, pid = run(link, "echo x > file"), side.supervisor_pid()
        calls = ("-e", "trace=getdents64", "-e", "inject=getdents64:error=EIO")
        with attached(pid, "-o", "/dev/null", *calls):
            link.ask(DeleteJob(CALLER, record.job_id))
            side.wait_for(lambda: "can't be listed" in side.log())
            with pytest.raises(CapExceeded):
                link.start("/bin/true")
        assert start_when_possible(side, link).uid == record.uid
        assert side.supervisor_pid() == pid
        assert side.log().count("can't be listed") == 1


def start_when_possible(side: RootSide, link: Link) -> JobRecord:
    """Start a job when there is a user for it, for which the supervisor has to learn of the helper's end first."""
    records: list[JobRecord] = []

    def started() -> bool:
        with suppress(CapExceeded):
            records.append(link.start("/bin/true"))
        return bool(records)

    side.wait_for(started)
    return records[0]


def test_users_are_used_again_when_no_file_of_theirs_is_left(tmp_path: Path) -> None:
    with root_side(str(tmp_path), keep_ended=0, uid_count=2) as side:
        link = side.link(subscribe=True)
        first = {run(link, "echo x > file").uid for _ in range(2)}
        assert start_when_possible(side, link).uid in first


def test_the_key_of_a_removed_job_is_free(tmp_path: Path) -> None:
    with root_side(str(tmp_path), keep_ended=0) as side:
        link = side.link(subscribe=True)
        request = StartJob(caller(PRINCIPAL), JobSpec("/bin/true"), Idempotency("key", "digest"))
        first = link.ask(request).record
        wait_removed(link, first.job_id)
        assert link.ask(request).record.job_id != first.job_id


def test_nothing_outside_is_touched(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o777)
    (outside / "file").write_text("x")
    outside.chmod(0o777)
    script = f"ln -s {outside} link; ln -s {outside}/file; mkdir -p a/b; ln -s {outside} a/b/link; mkfifo a/fifo"
    with root_side(str(tmp_path), keep_ended=0) as side:
        link = side.link(subscribe=True)
        ended = run(link, script)
        assert ended.exit_code == 0
        wait_removed(link, ended.job_id)
        wait_until_removed(side)
    assert (outside / "file").read_text() == "x"

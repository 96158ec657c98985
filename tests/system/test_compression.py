"""Closed segments are compressed while jobs write; whatever dies, no byte is lost and nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from jobworker.jobs import JobRecord
from jobworker.wire.messages import DeleteJob
from support.link import CALLER, Link
from support.root_side import RootSide, root_side
from support.strace import needs_strace, without_processes

pytestmark = pytest.mark.root

SEGMENT = 1 << 20
LINES = 700_000
WRITTEN = b"".join(b"%07d\n" % number for number in range(LINES))
CLOSED = (len(WRITTEN) - 1) // SEGMENT
SCRIPT = f"i=0; seq -f %07.0f 0 {LINES - 1}"


def logs_of(side: RootSide, record: JobRecord) -> Path:
    return Path(side.state_dir, "jobs", record.job_id, "logs")


def names(side: RootSide, record: JobRecord) -> set[str]:
    return {path.name.removeprefix(f"job_{record.job_id}.") for path in logs_of(side, record).iterdir()}


def all_compressed(side: RootSide, record: JobRecord) -> bool:
    closed = {name for name in names(side, record) if name.startswith("log.")}
    return closed == {f"log.{number}.gz" for number in range(CLOSED)}


def has(side: RootSide, record: JobRecord, files: set[str]) -> bool:
    return names(side, record) == files


def is_compressed(side: RootSide, record: JobRecord, number: int) -> bool:
    found = names(side, record)
    return f"log.{number}.gz" in found and f"log.{number}" not in found


def run(link: Link, script: str = SCRIPT) -> JobRecord:
    return link.wait_ended(link.start("/bin/sh", "-c", script).job_id)


def test_closed_segments_are_compressed_while_the_job_runs(tmp_path: Path) -> None:
    with root_side(str(tmp_path), segment_bytes=SEGMENT, compress_logs=True) as side:
        link = side.link(subscribe=True)
        record = link.start("/bin/sh", "-c", f"{SCRIPT}; exec sleep 1000")
        # The open segment may still be on its way when the last closed one is compressed.
        side.wait_for(lambda: link.inspect(record.job_id).log_bytes == len(WRITTEN))
        side.wait_for(lambda: all_compressed(side, record))
        assert sum(path.stat().st_size for path in logs_of(side, record).iterdir()) < len(WRITTEN) // 2
        link.stop(record.job_id)
        assert link.read_log(link.inspect(record.job_id)) == WRITTEN
        assert all(name.split(".")[0] in ("log", "idx") for name in names(side, record)), "nothing is left over"


@needs_strace
def test_it_waits_for_a_process(tmp_path: Path) -> None:
    with root_side(str(tmp_path), segment_bytes=SEGMENT, compress_logs=True) as side:
        link = side.link(subscribe=True)
        record = link.start("/bin/sh", "-c", f"while [ ! -e go ]; do sleep 0.02; done; {SCRIPT}")
        pid = side.supervisor_pid()
        with without_processes(pid) as tries:
            Path(side.state_dir, "jobs", record.job_id, "work", "go").touch()
            side.wait_for(lambda: tries() > 1)
        ended = link.wait_ended(record.job_id)
        side.wait_for(lambda: all_compressed(side, record))
        assert link.read_log(ended) == WRITTEN
        assert side.supervisor_pid() == pid
        assert side.log().count("no compressor could be started") == 1


def test_who_has_the_plain_file_open_goes_on(tmp_path: Path) -> None:
    with root_side(str(tmp_path), segment_bytes=SEGMENT) as side:
        record = run(side.link(subscribe=True))
        with (logs_of(side, record) / f"job_{record.job_id}.log.0").open("rb") as follower:
            assert follower.read(100) == WRITTEN[:100]
            side.restart(compress_logs=True)
            side.wait_for(lambda: all_compressed(side, record))
            assert follower.read() == WRITTEN[100:SEGMENT]


def test_a_state_from_before_is_compressed_and_stays_readable_without(tmp_path: Path) -> None:
    with root_side(str(tmp_path), segment_bytes=SEGMENT) as side:
        record = run(side.link(subscribe=True))
        assert not any(name.endswith(".gz") for name in names(side, record))
        side.restart(compress_logs=True)
        side.wait_for(lambda: all_compressed(side, record))
        side.restart(compress_logs=False)
        assert side.link().read_log(record) == WRITTEN
        assert all_compressed(side, record)


def test_a_supervisor_that_takes_over_goes_on_behind_compressed_segments(tmp_path: Path) -> None:
    with root_side(str(tmp_path), segment_bytes=SEGMENT, compress_logs=True) as side:
        link = side.link(subscribe=True)
        script = f"{SCRIPT}; trap 'echo more; exit 3' USR1; while :; do sleep 0.02; done"
        record = link.start("/bin/sh", "-c", script)
        # The open segment may still be on its way when the last closed one is compressed.
        side.wait_for(lambda: link.inspect(record.job_id).log_bytes == len(WRITTEN))
        side.wait_for(lambda: all_compressed(side, record))
        os.kill(side.supervisor_pid(), signal.SIGKILL)
        link = side.reconnect(subscribe=True)
        assert link.inspect(record.job_id).log_bytes == len(WRITTEN)
        os.kill(record.pid, signal.SIGUSR1)
        ended = link.wait_ended(record.job_id)
        assert (ended.exit_code, ended.lost_bytes) == (3, 0)
        assert link.read_log(ended) == WRITTEN + b"more\n"


def test_kills_of_everyone_cost_no_byte(tmp_path: Path) -> None:
    with root_side(str(tmp_path), segment_bytes=SEGMENT, compress_logs=True) as side:
        link = side.link(subscribe=True)
        rounds = "for i in 1 2 3 4; do seq -f %07.0f 0 99999; sleep 0.1; done"
        jobs = [link.start("/bin/sh", "-c", rounds) for _ in range(4)]

        def can_be_killed() -> bool:
            """It compresses, or no job is left that would have it compress."""
            with contextlib.suppress(LookupError):
                return bool(side.child("jw-compressor"))
            return all(link.inspect(job.job_id).ended_ns for job in jobs)

        for turn in range(20):
            side.wait_for(can_be_killed)
            with contextlib.suppress(LookupError, ProcessLookupError):
                os.kill(side.child("jw-compressor"), signal.SIGKILL)
            if turn % 5 == 0:
                os.kill(side.supervisor_pid(), signal.SIGKILL)
                link = side.reconnect(subscribe=True)
        written = b"".join(b"%07d\n" % number for number in range(100_000)) * 4
        for job in jobs:
            ended = link.wait_ended(job.job_id)
            assert (ended.log_bytes, ended.lost_bytes) == (len(written), 0)
            assert link.read_log(ended) == written
        side.restart()
        link = side.link()
        numbers = range((len(written) - 1) // SEGMENT)
        whole = {"log", "idx", *(f"log.{n}.gz" for n in numbers), *(f"idx.{n}" for n in numbers)}
        for record in [link.inspect(job.job_id) for job in jobs]:
            side.wait_for(partial(has, side, record, whole))
            assert link.read_log(record) == written


def test_what_is_compressed_takes_less_of_a_job_s_share(tmp_path: Path) -> None:
    share, rounds = 4 * SEGMENT, 8
    with root_side(str(tmp_path), segment_bytes=SEGMENT, compress_logs=True, keep_log=share) as side:
        link = side.link(subscribe=True)
        script = f"head -c {SEGMENT} /dev/zero; printf x; while [ ! -e go$i ]; do sleep 0.02; done"
        record = link.start("/bin/sh", "-c", f"for i in $(seq {rounds}); do {script}; done")
        for turn in range(1, rounds + 1):
            side.wait_for(partial(is_compressed, side, record, turn - 1))
            Path(side.state_dir, "jobs", record.job_id, "work", f"go{turn}").touch()
        link.wait_ended(record.job_id)
        logs = [path for path in logs_of(side, record).iterdir() if ".log" in path.name]
        assert sum(path.stat().st_size for path in logs) <= share
        assert len(logs) == rounds + 1 > share // SEGMENT, "nothing had to go"


def test_a_removed_job_leaves_nothing(tmp_path: Path) -> None:
    with root_side(str(tmp_path), segment_bytes=SEGMENT, compress_logs=True) as side:
        link = side.link(subscribe=True)
        for _ in range(5):
            record = run(link)
            link.ask(DeleteJob(CALLER, record.job_id))
        side.wait_for(lambda: not os.listdir(os.path.join(side.state_dir, "removed")))
        assert "files of a removed job are left" not in side.log()


def test_the_compressor_gives_way_to_everyone(tmp_path: Path) -> None:
    with root_side(str(tmp_path), segment_bytes=SEGMENT, compress_logs=True) as side:
        run(side.link(subscribe=True))
        compressor, supervisor = side.compressor_pid(), side.supervisor_pid()
        assert os.getpriority(os.PRIO_PROCESS, compressor) > os.getpriority(os.PRIO_PROCESS, supervisor)

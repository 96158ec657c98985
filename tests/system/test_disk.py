"""A state directory on a disk that is full, has no inode left, or was made read-only by its file system."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from jobworker.errors import HostFault, UpgradeRefused
from jobworker.jobs import EndReason
from jobworker.limits import Limits
from jobworker.wire import messages
from support.disks import on_disk, unmount
from support.gates import gate, open_gate
from support.link import DEADLINE
from support.root_side import RootSide

pytestmark = pytest.mark.root

MIB = 1 << 20


@contextmanager
def on_ext4(directory: Path) -> Iterator[tuple[RootSide, Path]]:
    """An agent on a file system that becomes read-only, under open files, once its switch is written to."""
    state, image = directory / "state", directory / "image"
    state.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 * MIB)
    if not shutil.which("mkfs.ext4") or subprocess.run(["mkfs.ext4", "-q", "-F", image], check=False).returncode:
        pytest.skip("no ext4 can be made here")
    mount = ["mount", "-o", "loop,errors=remount-ro", str(image), str(state)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no loop device is to be had here")
    with ExitStack() as undo:
        undo.callback(unmount, state)
        source = subprocess.run(["findmnt", "-no", "SOURCE", state], capture_output=True, check=True, text=True)
        side = RootSide(str(directory), segment_bytes=MIB)
        undo.callback(side.close)
        yield side, Path("/sys/fs/ext4", os.path.basename(source.stdout.strip()), "trigger_fs_error")


def go(path: Path) -> None:
    with open(path, "w"):
        pass


def test_a_full_disk_costs_output_and_nothing_else(tmp_path: Path) -> None:
    with on_disk(tmp_path, "size=4m", segment_bytes=MIB) as side:
        link = side.link(subscribe=True)
        # As much as fits four times, then a line when there is room again.
        script = f"head -c {16 * MIB} /dev/zero; while [ ! -e go ]; do sleep 0.05; done; echo more; exit 5"
        record = link.start("/bin/sh", "-c", script)
        side.wait_for(lambda: link.inspect(record.job_id).log_bytes == 16 * MIB)
        seen = link.inspect(record.job_id)
        assert 12 * MIB <= seen.lost_bytes < 16 * MIB
        assert "output is being lost: ENOSPC" in seen.detail
        subprocess.run(["mount", "-o", "remount,size=64m", side.state_dir], check=True)
        go(Path(side.state_dir, "jobs", record.job_id, "work", "go"))
        ended = link.wait_ended(record.job_id)
        assert (ended.end_reason, ended.exit_code, ended.log_bytes) == (EndReason.EXITED, 5, 16 * MIB + 5)
        assert (ended.lost_bytes, ended.detail) == (seen.lost_bytes, "")
        counted = link.ask(messages.Measure()).totals
        assert (counted.lost_bytes, counted.log_gaps) == (seen.lost_bytes, 1)
        logs = Path(side.state_dir, "jobs", record.job_id, "logs")
        assert (logs / f"job_{record.job_id}.log").read_bytes()[-5:] == b"more\n"
        assert "output is being lost" in side.log()


def test_exit_codes_that_can_t_be_written_outlive_the_supervisor(tmp_path: Path) -> None:
    with on_disk(tmp_path, "size=4m", segment_bytes=MIB) as side:
        link = side.link(subscribe=True)
        # One ends with its output drained, the other's is still in the pipe when it exits.
        quiet = link.start("/bin/sh", "-c", "sleep 0.5; exit 6")
        filling = link.start("/bin/sh", "-c", f"head -c {8 * MIB} /dev/zero; exit 7")
        for _ in range(2):
            assert link.wait_ended(filling.job_id).exit_code == 7
            assert link.wait_ended(quiet.job_id).exit_code == 6
            assert "record not saved" in side.log()
            os.kill(side.supervisor_pid(), signal.SIGKILL)
            link.drain()
            link = side.reconnect(subscribe=True)
        subprocess.run(["mount", "-o", "remount,size=64m", side.state_dir], check=True)
        assert link.wait_ended(filling.job_id).exit_code == 7
        assert link.wait_ended(quiet.job_id).exit_code == 6
        assert link.wait_ended(link.start("/bin/true").job_id).exit_code == 0


def test_exit_codes_that_can_t_be_written_outlive_the_keeper(tmp_path: Path) -> None:
    with on_disk(tmp_path, "size=4m", segment_bytes=MIB) as side:
        link = side.link(subscribe=True)
        quiet = link.start("/bin/sh", "-c", "sleep 0.5; exit 6")
        filling = link.start("/bin/sh", "-c", f"head -c {8 * MIB} /dev/zero; exit 7")
        assert link.wait_ended(filling.job_id).exit_code == 7
        assert link.wait_ended(quiet.job_id).exit_code == 6
        assert "record not saved" in side.log()
        side.kill_keeper()
        link.drain()
        link = side.reconnect(subscribe=True)
        for record, code in ((filling, 7), (quiet, 6)):
            ended = link.wait_ended(record.job_id)
            assert (ended.end_reason, ended.exit_code) == (EndReason.EXITED, code)


def test_gaps_that_can_t_be_written_are_not_left_to_the_next_version(tmp_path: Path) -> None:
    with on_disk(tmp_path, "size=4m", segment_bytes=MIB) as side:
        link = side.link(subscribe=True)
        record = link.start("/bin/sh", "-c", f"head -c {16 * MIB} /dev/zero; exec sleep 1000")
        side.wait_for(lambda: link.inspect(record.job_id).log_bytes == 16 * MIB)
        before = link.inspect(record.job_id)
        with pytest.raises(UpgradeRefused, match=f"would not know of job {record.job_id}, whose record"):
            link.ask(messages.Upgrade())
        subprocess.run(["mount", "-o", "remount,size=64m", side.state_dir], check=True)
        link.ask(messages.Upgrade())
        link.drain()
        after = side.reconnect(subscribe=True).inspect(record.job_id)
        assert (after.log_bytes, after.lost_bytes) == (before.log_bytes, before.lost_bytes)


def fill(path: Path) -> None:
    with suppress(OSError), open(path, "ab", 0) as file:
        while True:
            file.write(bytes(4096))


def test_no_job_is_started_that_no_record_can_be_written_of(tmp_path: Path) -> None:
    with on_disk(tmp_path, "size=4m", segment_bytes=MIB) as side:
        link = side.link(subscribe=True)
        full = Path(side.state_dir, "fill")
        fill(full)
        with pytest.raises(HostFault, match="writing the job's record"):
            link.start("/bin/true")
        assert os.listdir(os.path.join(side.state_dir, "jobs")) == []
        full.unlink()
        assert link.wait_ended(link.start("/bin/true").job_id).exit_code == 0


def test_a_job_that_was_told_of_as_the_disk_was_full_outlives_the_supervisor(tmp_path: Path) -> None:
    with on_disk(tmp_path, "size=4m", segment_bytes=MIB, own_package=True) as side:
        full, line = Path(side.state_dir, "fill"), "        self._answer(job)\n        job.announce()\n"
        full_then = f"        __import__('os').system({f'cat /dev/zero >> {full} 2>/dev/null'!r})\n"
        side.change("supervisor/launch.py", line, full_then + line)
        os.kill(side.supervisor_pid(), signal.SIGKILL)
        link = side.reconnect()
        record = link.start("/bin/sleep", "1000", limits=Limits(memory_bytes=100_000_001, pids=7))
        link = side.kill_supervisor(link)
        assert link.inspect(record.job_id).pid == record.pid
        full.unlink()
        assert link.stop(record.job_id).end_reason is EndReason.STOPPED


def test_no_inode_left(tmp_path: Path) -> None:
    with on_disk(tmp_path, "size=64m,nr_inodes=1000", segment_bytes=MIB) as side:
        link = side.link(subscribe=True)
        fill = Path(side.state_dir, "fill")
        fill.mkdir()
        running = link.start("/bin/sh", "-c", f"read go; head -c {3 * MIB} /dev/zero; exit 6", stdin_open=True)
        with suppress(OSError):
            for number in range(2000):
                go(fill / str(number))
        with pytest.raises(HostFault):
            link.start("/bin/true")
        link.feed(running.job_id, b"go\n", end=True)
        ended = link.wait_ended(running.job_id)
        assert (ended.exit_code, ended.log_bytes) == (6, 3 * MIB)
        assert ended.lost_bytes >= MIB
        for path in fill.iterdir():
            path.unlink()
        assert link.wait_ended(link.start("/bin/true").job_id).exit_code == 0


def test_a_disk_that_becomes_read_only(tmp_path: Path) -> None:
    with on_ext4(tmp_path) as (side, switch):
        link = side.link(subscribe=True)
        tmp_path.chmod(0o755)
        script = "echo before; read x < {}; echo after; exit 6"
        jobs = [link.start("/bin/sh", "-c", script.format(gate(side, number))) for number in range(2)]
        for job in jobs:
            link.wait_output(job.job_id)
        switch.write_text("1")
        with pytest.raises(HostFault, match="EROFS"):
            link.start("/bin/true")
        open_gate(side, 0)
        ended = link.wait_ended(jobs[0].job_id)
        assert (ended.end_reason, ended.exit_code) == (EndReason.EXITED, 6)
        assert (ended.log_bytes, ended.lost_bytes) == (13, 6)
        assert "record not saved" in side.log()
        # Without a supervisor the next one can't be talked to, and looks after the jobs nevertheless.
        os.kill(side.supervisor_pid(), signal.SIGKILL)
        link.drain()
        running = os.pidfd_open(jobs[1].pid)
        open_gate(side, 1)
        assert select.select([running], [], [], DEADLINE)[0]
        os.close(running)
        side.wait_for(lambda: "nobody can connect until the socket can be made" in side.log())
        unsaved = f'"event": "record not saved", "job": "{jobs[1].job_id}"'
        side.wait_for(lambda: unsaved in side.log())

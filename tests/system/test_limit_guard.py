"""Limits that somebody else on the host changes are set again, told and counted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobworker import units
from jobworker.errors import CapExceeded, InvalidField
from jobworker.jobs import JobRecord
from jobworker.kernel import disk
from jobworker.limits import Enforcement, Limits, LimitStatus
from support.gates import gate, open_gate
from support.limit_files import limit_file
from support.link import Link
from support.root_side import RootSide, fresh_root_side
from support.waiting import until

pytestmark = pytest.mark.root


@pytest.fixture
def side() -> Iterator[RootSide]:
    with fresh_root_side() as running:
        yield running


@pytest.fixture
def link(side: RootSide) -> Link:
    return side.link(subscribe=True)


@contextlib.contextmanager
def away(side: RootSide) -> Iterator[None]:
    """The supervisor does not look meanwhile."""
    pid = side.supervisor_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def change_memory(path: Path, size: int) -> None:
    """Set a memory limit, which v1 takes to be no more than that of memory and swap."""
    both = path.parent / "memory.memsw.limit_in_bytes"
    if both.exists() and int(both.read_text()) < size:
        both.write_text(str(size))
    path.write_text(str(size))


def status_of(link: Link, job: JobRecord, name: str) -> LimitStatus:
    return {limit.name: limit for limit in link.inspect(job.job_id).limits}[name]


def warnings(side: RootSide) -> list[list[str]]:
    lines = map(json.loads, side.log().splitlines())
    return [line["limits"] for line in lines if line["event"] == "limits changed by others"]


@pytest.mark.parametrize(
    ("name", "limits", "written"),
    [
        ("memory", Limits(memory_bytes=64 << 20), "33554432"),
        ("memory", Limits(memory_bytes=64 << 20), "134217728"),
        ("cpu", Limits(cpu_millis=500), "25000"),
        ("cpu_weight", Limits(cpu_weight=300), "100"),
        ("pids", Limits(pids=20), "max"),
        ("cpuset", Limits(cpuset="0"), "0-1"),
    ],
)
def test_what_is_changed_is_set_again(link: Link, side: RootSide, name: str, limits: Limits, written: str) -> None:
    job = link.start("/bin/sleep", "1000", limits=limits)
    path = limit_file(job, name)
    before = path.read_text()
    with away(side):
        if name == "memory":
            change_memory(path, int(written))
        else:
            path.write_text(written)
    until(path.read_text, before)
    until(lambda: link.inspect(job.job_id).limits_restored >= 1, True)
    assert link.inspect(job.job_id).limits == job.limits
    assert name in warnings(side)[0]
    link.stop(job.job_id, force=True)


def test_what_was_never_limited_is_left_to_others(link: Link, side: RootSide) -> None:
    job = link.start("/bin/sleep", "1000", limits=Limits(cpu_millis=500))
    weight, cpu = limit_file(job, "cpu_weight"), limit_file(job, "cpu")
    weight.write_text("2")
    cpu.write_text("25000")
    # What was written first was looked at with it, at the latest.
    until(lambda: link.inspect(job.job_id).limits_restored, 1)
    assert weight.read_text() == "2\n"
    assert warnings(side) == [["cpu"]]


def test_what_was_changed_while_nobody_looked_is_set_again(link: Link, side: RootSide) -> None:
    job = link.start("/bin/sleep", "1000", limits=Limits(cpu_millis=500, pids=20))
    other = link.start("/bin/sleep", "1000", limits=Limits(cpu_millis=500))
    side.freeze_keeper()
    os.kill(side.supervisor_pid(), signal.SIGKILL)
    link.drain()
    limit_file(job, "pids").write_text("7")
    side.thaw_keeper()
    again = side.reconnect(subscribe=True)
    until(lambda: again.inspect(job.job_id).limits_restored, 1)
    assert limit_file(job, "pids").read_text() == "20\n"
    assert again.inspect(other.job_id).limits_restored == 0
    # And it is guarded as before.
    limit_file(other, "cpu").write_text("25000")
    until(lambda: again.inspect(other.job_id).limits_restored, 1)


def grown(link: Link, side: RootSide, free: str, **limits: Any) -> JobRecord:
    """A job that has more memory than it was limited to, since somebody has raised that limit, until `free`.

    Without cgroup v1 the test is skipped.
    """
    go = gate(side, "go")
    script = f"read x < {go}; python3 -c 'b = bytearray(200 << 20); open(\"{free}\").read()'; sleep 1000"
    job = link.start("/bin/sh", "-c", script, limits=Limits(memory_bytes=64 << 20, **limits))
    memory = limit_file(job, "memory")
    if memory.name == "memory.max":
        pytest.skip("cgroup v2 takes any limit, and ends the job for it")
    with away(side):
        change_memory(memory, 1 << 30)
        open_gate(side, "go")
        until(lambda: memory_used(job) > 200 << 20, True)
    until(lambda: status_of(link, job, "memory").enforcement, Enforcement.BEST_EFFORT)
    return job


def memory_used(job: JobRecord) -> int:
    return int((limit_file(job, "memory").parent / "memory.usage_in_bytes").read_text())


def test_what_cannot_be_set_again_is_told(link: Link, side: RootSide) -> None:
    # The one that can be set again is written first, of which the kernel tells too.
    job = grown(link, side, gate(side, "free"), cpu_millis=900)
    told = status_of(link, job, "memory")
    assert told.value == "1G"
    assert "changed by others, and not to be set again" in told.detail
    assert link.inspect(job.job_id).limits_restored == 0
    other = link.start("/bin/sleep", "1000", limits=Limits(cpu_millis=500))
    limit_file(other, "cpu").write_text("25000")
    until(lambda: link.inspect(other.job_id).limits_restored, 1)
    assert warnings(side) == [["memory"], ["cpu"]]
    # Once it can be, it is as it was; the next change is what leads to that.
    open_gate(side, "free")
    until(lambda: memory_used(job) < 60 << 20, True)
    with away(side):
        limit_file(job, "memory").write_text(str(1 << 29))
    until(lambda: link.inspect(job.job_id).limits_restored, 1)
    assert status_of(link, job, "memory") == {limit.name: limit for limit in job.limits}["memory"]
    link.stop(job.job_id, force=True)


def test_one_that_cannot_be_set_again_keeps_no_other_from_it(link: Link, side: RootSide) -> None:
    job = grown(link, side, gate(side, "free"), pids=20, cpu_weight=300)
    with away(side):
        limit_file(job, "pids").write_text("max")
        limit_file(job, "cpu_weight").write_text("100")
    until(lambda: warnings(side)[1:], [["cpu_weight", "memory", "pids"]])
    assert limit_file(job, "pids").read_text() == "20\n"
    told = {limit.name: limit for limit in link.inspect(job.job_id).limits}
    assert "memory.limit_in_bytes" in told["memory"].detail
    given = {limit.name: limit for limit in job.limits}
    assert [told[name] for name in ("pids", "cpu_weight")] == [given[name] for name in ("pids", "cpu_weight")]
    assert link.inspect(job.job_id).limits_restored == 1
    link.stop(job.job_id, force=True)


@contextlib.contextmanager
def unchangeable(path: Path, text: str) -> Iterator[None]:
    """The kernel's file has this content, and refuses any other."""
    with tempfile.NamedTemporaryFile("w") as other:
        other.write(text)
        other.flush()
        subprocess.run(["mount", "--bind", other.name, path], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
            yield
        finally:
            subprocess.run(["umount", path], check=True)


def test_what_is_set_again_is_told_as_it_was_at_the_start(link: Link, side: RootSide) -> None:
    """Of a limit that does not hold for everything the reason too, over the death of the supervisor."""
    place = "/var/lib"
    try:
        number = disk.of_path(place).number
    except disk.NoDisk as error:
        pytest.skip(str(error))
    job = link.start("/bin/sleep", "1000", workdir=place, limits=Limits(pids=20, io_write_bps=1 << 20))
    before, path = status_of(link, job, "io_write"), limit_file(job, "io_write")
    of_one = path.name.startswith("blkio")
    text = f"{number} 4096\n" if of_one else f"{number} rbps=max wbps=4096 riops=max wiops=max\n"
    with unchangeable(path, text):
        limit_file(job, "pids").write_text("20")
        until(lambda: "changed by others" in status_of(link, job, "io_write").detail, True)
        again = side.kill_supervisor(link)
        until(lambda: "changed by others" in status_of(again, job, "io_write").detail, True)
        told = status_of(again, job, "io_write")
        assert (told.value, told.enforcement) == ("4K/s", Enforcement.BEST_EFFORT)
    path.write_text(f"{number} 8192" if of_one else f"{number} wbps=8192")
    until(lambda: status_of(again, job, "io_write"), before)
    # That others set it again themselves is seen with the next change.
    with unchangeable(path, text):
        limit_file(job, "pids").write_text("20")
        until(lambda: status_of(again, job, "io_write") != before, True)
    limit_file(job, "pids").write_text("20")
    until(lambda: status_of(again, job, "io_write"), before)
    again.stop(job.job_id, force=True)


def test_cpus_that_the_jobs_cgroup_has_not_are_not_told(link: Link) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    job = link.start("/bin/sleep", "1000", limits=Limits(pids=20, cpuset=units.format_cpu_list(cpus)))
    before, base = status_of(link, job, "cpuset"), limit_file(job, "cpuset").parent.parent / "cpuset.cpus"
    try:
        base.write_text(str(cpus[0]))
    except OSError as error:
        pytest.skip(f"cgroup v1 does not take from a cgroup what those in it have: {error}")
    limit_file(job, "pids").write_text("30")
    until(lambda: status_of(link, job, "cpuset").value, str(cpus[0]))
    base.write_text(units.format_cpu_list(cpus))
    limit_file(job, "pids").write_text("30")
    until(lambda: status_of(link, job, "cpuset"), before)
    link.stop(job.job_id, force=True)


def test_a_job_that_has_ended_is_guarded_no_more(link: Link, side: RootSide) -> None:
    watches = f"/proc/{side.supervisor_pid()}/fdinfo"

    def count() -> int:
        texts = [Path(watches, fd).read_text() for fd in os.listdir(watches)]
        return sum(text.count("inotify wd") for text in texts)

    before = count()
    job = link.start("/bin/sleep", "1000")
    assert count() > before
    link.stop(job.job_id, force=True)
    until(count, before)


def test_what_it_waits_for_and_has_now_is_told(link: Link) -> None:
    job = link.start("/bin/sh", "-c", "while :; do :; done", limits=Limits(cpu_millis=50, memory_bytes=64 << 20))
    usage = link.inspect(job.job_id).usage
    assert (usage.processes, usage.memory_bytes > 0) == (1, True)
    if os.path.exists("/proc/pressure/cpu"):
        until(lambda: link.inspect(job.job_id).usage.cpu_stalled_usec > 0, True)
        assert link.stop(job.job_id, force=True).usage.cpu_stalled_usec > 0


def test_memory_is_reserved_by_limits() -> None:
    with fresh_root_side(max_jobs_memory_bytes=100 << 20, default_memory_bytes=30 << 20) as reserving:
        link = reserving.link(subscribe=True)
        first = link.start("/bin/sleep", "1000", limits=Limits(memory_bytes=64 << 20))
        by_default = link.start("/bin/sleep", "1000")
        told = {limit.name: limit.value for limit in by_default.limits}
        assert told["memory"] == "30M"
        with pytest.raises(CapExceeded, match=r"together \(jobs.max_jobs_memory\) may be 104857600 at most"):
            link.start("/bin/true", limits=Limits(memory_bytes=7 << 20))
        with pytest.raises(InvalidField, match=r"limits.memory: 101M is more .*; for example 100M"):
            link.start("/bin/true", limits=Limits(memory_bytes=101 << 20))
        assert link.wait_ended(link.start("/bin/true", limits=Limits(memory_bytes=6 << 20)).job_id).exit_code == 0
        # What is adopted counts as before, and what has ended does not.
        os.kill(reserving.supervisor_pid(), signal.SIGKILL)
        link.drain()
        link = reserving.reconnect(subscribe=True)
        with pytest.raises(CapExceeded):
            link.start("/bin/true")
        link.stop(first.job_id, force=True)
        assert link.wait_ended(link.start("/bin/true").job_id).exit_code == 0

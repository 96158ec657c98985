"""New limits for jobs that run: what is given changes, all of it or nothing, and it lasts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobworker.errors import (
    AgentUnavailable,
    CapExceeded,
    InvalidField,
    JobAlreadyEnded,
    JobNotFound,
    JobWorkerError,
    LimitRefused,
    LimitUnsupported,
)
from jobworker.jobs import JobRecord
from jobworker.limits import Enforcement, Limits
from jobworker.wire import messages
from support.agent import Agent
from support.limit_files import kernel_limits, limit_file
from support.link import CALLER, Link
from support.root_side import RootSide, fresh_root_side
from support.strace import attached, needs_strace
from support.trails import events
from support.waiting import until

pytestmark = pytest.mark.root

_MIB = 1 << 20
# What the job below has: by itself some hundred KiB.
_LARGE = 100 * _MIB


@pytest.fixture
def own_side() -> Iterator[RootSide]:
    with fresh_root_side(max_jobs_memory_bytes=300 * _MIB) as running:
        yield running


def update(link: Link, job: JobRecord, *, force: bool = False, **limits: Any) -> JobRecord:
    record: JobRecord = link.ask(messages.UpdateJob(CALLER, job.job_id, Limits(**limits), force)).record
    return record


def values(record: JobRecord) -> dict[str, str]:
    return {status.name: status.value for status in record.limits}


def large(link: Link, workdir: str = "", **limits: Any) -> JobRecord:
    """A job that has a lot of memory and keeps it."""
    script = f"data = bytearray(b'x') * {_LARGE}; print('there', flush=True); import time; time.sleep(1000)"
    words = ("/usr/bin/python3", "-I", "-S", "-c", script)
    job = link.start(*words, workdir=workdir, limits=Limits(**limits))
    link.wait_output(job.job_id)
    return job


def test_only_what_is_given_changes(link: Link) -> None:
    job = link.start("/bin/sleep", "1000", limits=Limits(cpu_millis=500, memory_bytes=64 * _MIB, pids=20))
    after = update(link, job, memory_bytes=128 * _MIB)
    assert values(after) == {"cpu": "50%", "memory": "128M", "pids": "20"}
    assert kernel_limits(job) == values(after)
    after = update(link, job, cpu_millis=250, pids=10, memory_bytes=32 * _MIB)
    assert kernel_limits(job) == values(after) == {"cpu": "25%", "memory": "32M", "pids": "10"}
    assert link.inspect(job.job_id).limits == after.limits
    assert (after.limits_restored, after.pid) == (0, job.pid)
    link.stop(job.job_id, force=True)


def test_a_job_is_given_limits_that_it_did_not_have(link: Link) -> None:
    job = link.start("/bin/sleep", "1000")
    assert kernel_limits(job) == {"pids": "1024"}
    after = update(link, job, cpu_millis=500, memory_bytes=64 * _MIB, cpu_weight=300)
    assert values(after) == {"cpu": "50%", "cpu_weight": "300", "memory": "64M", "pids": "1024"}
    assert kernel_limits(job) == {"cpu": "50%", "memory": "64M", "pids": "1024"}
    swap = limit_file(job, "memory").parent / "memory.memsw.limit_in_bytes"
    if swap.exists():
        assert swap.read_text() == f"{64 * _MIB}\n"
    link.stop(job.job_id, force=True)


def test_less_swap_alone(link: Link) -> None:
    job = link.start("/bin/sleep", "1000", limits=Limits(memory_bytes=64 * _MIB), best_effort=True)
    swap = limit_file(job, "memory").parent / "memory.memsw.limit_in_bytes"
    if not swap.exists():
        pytest.skip("nothing accounts for swap here, or beside memory")
    for size in (64, 16):
        assert values(update(link, job, swap_bytes=size * _MIB))["swap"] == f"{size}M"
        assert swap.read_text() == f"{(64 + size) * _MIB}\n"
    assert link.stop(job.job_id, force=True).limits_restored == 0


def test_the_job_feels_it(link: Link) -> None:
    job = link.start("/bin/sh", "-c", "while :; do :; done")
    update(link, job, cpu_millis=100)
    until(lambda: link.inspect(job.job_id).usage.throttled_usec > 0, True)
    link.stop(job.job_id, force=True)


def test_a_size_that_is_no_whole_page_is_told_as_the_kernel_keeps_it(link: Link) -> None:
    job = link.start("/bin/sleep", "1000", limits=Limits(pids=20))
    after = update(link, job, memory_bytes=64 * _MIB + 5)
    (memory,) = (status for status in after.limits if status.name == "memory")
    assert (memory.requested, memory.value) == (str(64 * _MIB + 5), "64M")
    assert kernel_limits(job)["memory"] == "64M"
    # Nor does the guard, which looks at all of them then, find it changed.
    limit_file(job, "pids").write_text("30")
    until(lambda: link.inspect(job.job_id).limits_restored, 1)
    assert link.stop(job.job_id, force=True).limits_restored == 1


def test_it_is_on_disk_with_the_answer_and_survives_the_supervisor(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    job = link.start("/bin/sleep", "1000", limits=Limits(pids=20))
    after = update(link, job, pids=10, cpu_millis=300)
    stored = json.loads(Path(own_side.state_dir, "jobs", job.job_id, "job.json").read_text())
    assert {limit["name"]: limit["value"] for limit in stored["record"]["limits"]} == values(after)
    assert (stored["held_to"]["pids"], stored["held_to"]["cpu_millis"]) == (10, 300)
    own_side.freeze_keeper()
    os.kill(own_side.supervisor_pid(), signal.SIGKILL)
    link.drain()
    limit_file(job, "cpu").write_text("90000")
    own_side.thaw_keeper()
    again = own_side.reconnect(subscribe=True)
    # What others have changed is set to the new value, not to that of the start.
    until(lambda: again.inspect(job.job_id).limits_restored, 1)
    assert kernel_limits(job) == {"pids": "10", "cpu": "30%"}
    assert again.inspect(job.job_id).limits == after.limits


def test_the_guard_knows_the_new_limits(link: Link) -> None:
    job = link.start("/bin/sleep", "1000", limits=Limits(pids=20))
    update(link, job, pids=10)
    limit_file(job, "pids").write_text("20")
    until(lambda: link.inspect(job.job_id).limits_restored, 1)
    assert limit_file(job, "pids").read_text() == "10\n"
    link.stop(job.job_id, force=True)


def test_watchers_and_the_trail_are_told(side: RootSide, link: Link) -> None:
    watching = side.link(subscribe=True)
    job = link.start("/bin/sleep", "1000", limits=Limits(pids=20, memory_bytes=64 * _MIB))
    before = link.inspect(job.job_id)
    update(link, job, pids=10, cpu_millis=500)

    def is_newer(event: Any) -> bool:
        known = event.record if isinstance(event, messages.JobChanged) else before
        return known.job_id == job.job_id and known.revision > before.revision

    assert values(watching.wait_event(is_newer).record)["pids"] == "10"
    (line,) = [line for line in events(side.state_dir, "calls") if line.get("job") == job.job_id]
    assert line["event"] == "limits_updated"
    assert (line["before"], line["after"]) == ({"pids": "20"}, {"cpu": "50%", "pids": "10"})
    assert (line["by"], line["decision"]) == ("supervisor", "allow")
    assert line["claimed"]["principal"] == CALLER.principal
    link.stop(job.job_id, force=True)


def test_of_a_job_that_is_being_stopped_too(link: Link) -> None:
    job = link.start("/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.01; done")
    link.wait_output(job.job_id)
    link.stop(job.job_id, wait=False)
    assert values(update(link, job, pids=300))["pids"] == "300"
    link.stop(job.job_id, force=True)


# What is refused.


def refused(link: Link, job: JobRecord, error: type[JobWorkerError], said: str, **limits: Any) -> None:
    """And nothing has changed."""
    before, kernel = link.inspect(job.job_id), kernel_limits(job)
    with pytest.raises(error, match=said):
        update(link, job, **limits)
    after = link.inspect(job.job_id)
    assert (after.limits, after.revision, kernel_limits(job)) == (before.limits, before.revision, kernel)


def test_what_no_start_could_have(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    job = link.start("/bin/sleep", "1000", limits=Limits(pids=20))
    refused(link, job, InvalidField, r"limits: name nothing that is to change")
    refused(link, job, InvalidField, r"limits\.pids: 0 is not between", pids=0)
    refused(link, job, InvalidField, r"limits\.pids: 40000 is more than this host allows", pids=40_000)
    refused(link, job, InvalidField, r"limits\.cpu: .* is more than this host", cpu_millis=9_000_000, pids=5)
    refused(link, job, InvalidField, r"limits\.swap: is nothing without limits\.memory, and the", swap_bytes=_MIB)
    refused(link, job, InvalidField, r"limits\.cpuset: 8000 is not among this host's CPUs for jobs", cpuset="8000")
    # There is room for so much memory of all jobs together.
    other = link.start("/bin/sleep", "1000", limits=Limits(memory_bytes=200 * _MIB))
    refused(link, job, CapExceeded, "jobs are limited to together", memory_bytes=101 * _MIB, cpu_millis=500)
    assert values(update(link, job, memory_bytes=100 * _MIB))["memory"] == "100M"
    # What it asks for is what could not be, and not what that is more.
    refused(link, other, InvalidField, r"limits\.memory: 301M is more than all jobs may", memory_bytes=301 * _MIB)
    # What the job had before makes room for what it gets.
    assert values(update(link, other, memory_bytes=150 * _MIB))["memory"] == "150M"
    assert values(update(link, job, memory_bytes=150 * _MIB))["memory"] == "150M"


def test_a_job_that_has_ended_or_is_not_there(link: Link) -> None:
    job = link.wait_ended(link.start("/bin/true").job_id)
    with pytest.raises(JobAlreadyEnded):
        update(link, job, pids=10)
    with pytest.raises(JobNotFound):
        link.ask(messages.UpdateJob(CALLER, "0000-0000-0000-0000", Limits(pids=1), force=False))
    with pytest.raises(InvalidField):
        link.ask(messages.UpdateJob(CALLER, "../x", Limits(pids=1), force=False))


def test_less_memory_than_it_has_needs_force(link: Link) -> None:
    job = large(link, memory_bytes=200 * _MIB)
    refused(
        link,
        job,
        LimitRefused,
        r"limits\.memory cannot be changed: the job has .*, more than 50M",
        memory_bytes=50 * _MIB,
    )
    assert values(update(link, job, memory_bytes=150 * _MIB))["memory"] == "150M"
    link.stop(job.job_id, force=True)


def test_what_the_kernel_refuses_in_the_middle_is_taken_back(link: Link) -> None:
    """With v1 it does not take more memory back than it can."""
    job = large(link, pids=20)
    if limit_file(job, "memory").name == "memory.max":
        pytest.skip("cgroup v2 takes any limit, and ends the job for it")
    before = link.inspect(job.job_id)
    # The CPU limit, which it does not have yet, comes first, and the other processes' last.
    with pytest.raises(LimitRefused, match=r"limits\.memory cannot be changed: the kernel refuses it: EBUSY"):
        update(link, job, force=True, cpu_millis=500, memory_bytes=20 * _MIB, pids=10)
    assert kernel_limits(job) == {"pids": "20"}
    assert link.inspect(job.job_id).limits == before.limits
    # Nor is anything of it set later: the next change is all that there is.
    assert values(update(link, job, pids=15)) == {"pids": "15"}
    assert kernel_limits(job) == {"pids": "15"}
    assert link.stop(job.job_id, force=True).limits_restored == 0


@pytest.fixture
def cached(link: Link) -> JobRecord:
    return with_cache(link)


def with_cache(link: Link) -> JobRecord:
    """A job that has a lot of memory which can be taken back."""
    script = f"head -c {_LARGE} /dev/zero > file; echo there; sleep 1000"
    job = link.start("/bin/sh", "-c", script, limits=Limits(memory_bytes=200 * _MIB))
    link.wait_output(job.job_id)
    if link.inspect(job.job_id).usage.memory_bytes < 50 * _MIB:
        pytest.skip("what is written here is not charged")
    # Pages that are on their way to the disk can't be taken back yet.
    os.sync()
    return job


def test_with_force_the_kernel_takes_back_what_it_can(link: Link, cached: JobRecord) -> None:
    job = cached
    refused(link, job, LimitRefused, "more than 20M", memory_bytes=20 * _MIB)
    assert values(update(link, job, force=True, memory_bytes=20 * _MIB))["memory"] == "20M"
    assert kernel_limits(job)["memory"] == "20M"
    assert link.stop(job.job_id, force=True).limits_restored == 0


@contextlib.contextmanager
def before_it_is_taken_back(side: RootSide, link: Link, job: JobRecord) -> Iterator[tuple[int, int]]:
    """An update that takes memory back, and the process that is about to do it and has been stopped."""
    path = limit_file(job, "memory")

    def stopped() -> int:
        for process in Path("/proc").glob("[1-9]*"):
            with contextlib.suppress(OSError, ValueError):
                name, _, rest = (process / "stat").read_text().partition(") ")
                held = (process / "fd" / "0").readlink()
                if name.endswith("(jw-reclaim") and rest[0] in "tT" and held == path.parent:
                    return int(process.name)
        return 0

    stop = ("-f", "-o", "/dev/null", "-P", str(path), "-e", "trace=write", "-e", "inject=write:signal=STOP:when=1")
    with attached(side.supervisor_pid(), *stop):
        request = messages.UpdateJob(CALLER, job.job_id, Limits(memory_bytes=20 * _MIB, pids=10), force=True)
        asked = link.send(request)
        until(lambda: stopped() > 0, True)
    # Without strace, which would stop the supervisor as well when that writes there.
    helper = stopped()
    try:
        yield asked, helper
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(helper, signal.SIGKILL)


@needs_strace
def test_nobody_waits_while_memory_is_taken_back(side: RootSide, link: Link, cached: JobRecord) -> None:
    job, other = cached, side.link()
    before = kernel_limits(job)
    with before_it_is_taken_back(side, link, job) as (asked, helper):
        assert other.inspect(job.job_id).limits == job.limits
        # The guard is there for the other limits.
        limit_file(job, "pids").write_text("7")
        until(lambda: other.inspect(job.job_id).limits_restored, 1)
        # Nor may the two come in each other's way, force or not.
        said = "changes of this job's memory that are under way may be 1 at most; try again"
        refused(other, job, CapExceeded, said, force=True, memory_bytes=10 * _MIB)
        refused(other, job, CapExceeded, said, memory_bytes=150 * _MIB)
        assert values(update(other, job, cpu_millis=500))["cpu"] == "50%"
        os.kill(helper, signal.SIGCONT)
        after = link.answer(asked).message.record
    assert values(after) == kernel_limits(job) == before | {"memory": "20M", "pids": "10", "cpu": "50%"}
    assert link.stop(job.job_id, force=True).limits_restored == 1


@needs_strace
def test_what_is_not_taken_back_in_time_is_refused(side: RootSide, link: Link, cached: JobRecord) -> None:
    job = cached
    before = kernel_limits(job)
    with before_it_is_taken_back(side, link, job) as (asked, helper):
        # As if the kernel had it already, as with cgroup v2.
        limit_file(job, "memory").write_text(str(150 * _MIB))
        with pytest.raises(LimitRefused, match="has not taken that back within 10 s"):
            link.answer(asked)
        assert kernel_limits(job) == before
        # And that is not the end of it.
        limit_file(job, "memory").write_text(str(150 * _MIB))
        os.kill(helper, signal.SIGCONT)
        until(lambda: kernel_limits(job), before)
    assert link.inspect(job.job_id).limits == job.limits
    assert values(update(link, job, force=True, memory_bytes=20 * _MIB))["memory"] == "20M"
    link.stop(job.job_id, force=True)


@needs_strace
def test_an_upgrade_waits_until_memory_is_taken_back(own_side: RootSide) -> None:
    link, other = own_side.link(), own_side.link()
    job = with_cache(link)

    def takes_jobs() -> bool:
        with contextlib.suppress(AgentUnavailable):
            return bool(other.start("/bin/true"))
        return False

    with before_it_is_taken_back(own_side, link, job) as (asked, helper):
        upgrading = other.send(messages.Upgrade())
        until(takes_jobs, wanted=False)
        os.kill(helper, signal.SIGCONT)
        assert values(link.answer(asked).message.record)["memory"] == "20M"
    other.answer(upgrading)
    link.drain()
    again = own_side.reconnect(subscribe=True)
    assert values(again.inspect(job.job_id))["memory"] == kernel_limits(job)["memory"] == "20M"
    assert again.stop(job.job_id, force=True).limits_restored == 0


@needs_strace
def test_a_job_that_ends_meanwhile_has_ended(side: RootSide, link: Link, cached: JobRecord) -> None:
    with before_it_is_taken_back(side, link, cached) as (asked, helper):
        group = limit_file(cached, "memory").parent
        assert side.link().stop(cached.job_id, force=True).ended_ns
        # The kernel would not remove it while it is written to, and have all of its cgroups wait for that.
        assert group.exists()
        os.kill(helper, signal.SIGCONT)
        with pytest.raises(JobAlreadyEnded):
            link.answer(asked)
        until(group.exists, wanted=False)


def test_memory_and_the_disk_of_a_directory_change_in_one_call(link: Link, side: RootSide) -> None:
    """Either is waited for, and once."""
    (reading,) = (limit for limit in link.welcome.host.limits if limit.name == "io_read")
    if reading.enforcement is Enforcement.UNSUPPORTED:
        pytest.skip(reading.detail)
    named = f"{os.path.dirname(side.state_dir)}/with-memory"
    os.mkdir(named, 0o755)
    job = large(link, workdir=named, memory_bytes=200 * _MIB)
    changes = {"memory_bytes": 20 * _MIB, "io_read_bps": _MIB}
    if link.welcome.host.cgroup_mode == "v2":
        after = values(update(link, job, force=True, **changes))
        assert (after["memory"], after["io_read"]) == ("20M", "1M/s")
    else:
        refused(link, job, LimitRefused, "the kernel refuses it: EBUSY", force=True, **changes)
    link.stop(job.job_id, force=True)


def test_cpus_are_for_those_who_had_some(link: Link) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    with_some = link.start("/bin/sleep", "1000", limits=Limits(cpuset=str(cpus[0])))
    assert values(update(link, with_some, cpuset=str(cpus[-1])))["cpuset"] == str(cpus[-1])
    assert os.sched_getaffinity(with_some.pid) == {cpus[-1]}
    without = link.start("/bin/sleep", "1000")
    if link.welcome.host.cgroup_mode == "v2":
        assert values(update(link, without, cpuset=str(cpus[0])))["cpuset"] == str(cpus[0])
    else:
        said = "only a job that joined the cpuset controller at its start"
        refused(link, without, LimitUnsupported, said, cpuset=str(cpus[0]), pids=10)
    for job in (with_some, without):
        link.stop(job.job_id, force=True)


def test_a_record_that_cannot_be_written_changes_nothing(side: RootSide, link: Link) -> None:
    job = link.start("/bin/sleep", "1000", limits=Limits(pids=20))
    beside = Path(side.state_dir, "jobs", job.job_id, "job.json.new")
    beside.mkdir()
    try:
        refused(link, job, JobWorkerError, "the host failed at changing the job's limits", pids=10)
    finally:
        beside.rmdir()
    assert values(update(link, job, pids=10))["pids"] == "10"
    link.stop(job.job_id, force=True)


# As a user has it.


def test_the_command(agent: Agent) -> None:
    job = agent.start_job("--pids", "20", "sleep", "1000")
    done = agent.cli("update", job[:9], "--memory", "64M", "--cpu", "50%")
    assert (done.returncode, done.stdout.decode()) == (0, f"{job}  cpu 50% ENFORCED, memory 64M ENFORCED\n")
    told = json.loads(agent.cli("update", job, "--pids", "30", "--format", "json", check=True).stdout)
    assert {name: limit["value"] for name, limit in told["limits"].items()} == {
        "cpu": "50%",
        "memory": "64M",
        "pids": "30",
    }
    nothing = agent.cli("update", job)
    assert (nothing.returncode, b"give a limit that is to change" in nothing.stderr) == (2, True)
    wrong = agent.cli("update", job, "--memory", "64MB")
    assert (wrong.returncode, b"--memory: '64MB' is not a size; for example 256M" in wrong.stderr) == (2, True)
    assert agent.cli("update", job, "--pids", "5", role="reader").returncode == 4
    agent.cli("stop", job, "--force", check=True)
    ended = agent.cli("update", job, "--pids", "5")
    assert (ended.returncode, b"has already ended" in ended.stderr) == (1, True)

"""Limits as the kernel enforces them, measured from within the job and from its cgroup."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobworker import units
from jobworker.errors import HostFault, InvalidField, LimitUnsupported
from jobworker.jobs import EndReason, JobRecord
from jobworker.kernel import disk
from jobworker.limits import BY_NAME, Enforcement, Limits
from jobworker.wire import messages
from support.disks import partition, swap
from support.leftovers import cgroups
from support.limit_files import limit_file
from support.link import CALLER, Link
from support.root_side import RootSide, fresh_root_side, root_side
from support.strace import attached, failing_to_open, needs_strace

pytestmark = pytest.mark.root

_MIB = 1024 * 1024
_CPUS = sorted(os.sched_getaffinity(0))
# Asked for, and as it is told.
_ALL = Limits(
    cpu_millis=500,
    memory_bytes=64 * _MIB,
    pids=50,
    cpu_weight=300,
    cpuset=str(_CPUS[0]),
    swap_bytes=16 * _MIB,
    io_read_bps=10 * _MIB,
    io_write_bps=5 * _MIB,
    io_read_ops=1000,
    io_write_ops=500,
)


@pytest.fixture(scope="module")
def side() -> Iterator[RootSide]:
    """On a disk: what is below /tmp may not be."""
    with tempfile.TemporaryDirectory(prefix="jobworker-test-", dir="/var/lib") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        try:
            disk.of_path(directory)
        except disk.NoDisk as error:
            pytest.skip(str(error))
        with root_side(directory) as running:
            yield running


def unsupported(link: Link) -> set[str]:
    return {each.name for each in link.welcome.host.limits if each.enforcement is Enforcement.UNSUPPORTED}


def run(link: Link, limits: Limits, *command: str) -> tuple[JobRecord, str]:
    record = link.wait_ended(link.start(*command, limits=limits, best_effort=True).job_id)
    return record, link.read_log(record).decode()


def test_each_limit_is_set_and_read_back(link: Link) -> None:
    job = link.start("/bin/sleep", "1000", limits=_ALL, best_effort=True)
    found = {status.name: status for status in job.limits}
    link.stop(job.job_id, force=True)
    assert found.keys() == BY_NAME.keys()
    for name, status in found.items():
        kind = BY_NAME[name]
        assert status.requested == kind.show(getattr(_ALL, kind.field))
        if name in unsupported(link):
            assert (status.enforcement, status.value) == (Enforcement.UNSUPPORTED, "")
            assert status.detail
        else:
            assert status.value == status.requested, status
    assert cgroups(job.job_id) == []


@needs_strace
def test_limits_that_cannot_be_read_back_are_not_told_as_enforced(link: Link, side: RootSide) -> None:
    limits = Limits(pids=20)
    # The file is opened to be written first, then to be read.
    with (
        attached(side.supervisor_pid(), *failing_to_open("pids.max", 2, "EMFILE")),
        pytest.raises(HostFault, match=r"reading back the job's limits.*EMFILE"),
    ):
        link.start("/bin/sleep", "1000", limits=limits)
    # Once more when the command was executed; and then what was read before is what there is.
    with attached(side.supervisor_pid(), *failing_to_open("pids.max", 3, "EMFILE")):
        job = link.start("/bin/sleep", "1000", limits=limits)
    assert [(each.name, each.value, each.enforcement) for each in job.limits] == [
        ("pids", "20", Enforcement.ENFORCED)
    ]
    link.stop(job.job_id, force=True)


def test_what_was_not_asked_for_is_not_told(link: Link) -> None:
    job = link.start("/bin/true")
    assert [status.name for status in job.limits] == ["pids"]


def test_a_limit_on_the_disk_says_which_and_how_far_it_holds(link: Link, side: RootSide) -> None:
    found = disk.of_path(side.state_dir)
    job = link.start("/bin/true", limits=Limits(io_read_bps=_MIB, io_write_bps=_MIB), best_effort=True)
    statuses = {status.name: status for status in job.limits}
    if "io_read" in unsupported(link):
        pytest.skip(statuses["io_read"].detail)
    assert (statuses["io_read"].enforcement, statuses["io_read"].detail) == (
        Enforcement.ENFORCED,
        f"on {found.name}",
    )
    late = link.welcome.host.cgroup_mode != "v2" or found.late_writes
    assert statuses["io_write"].enforcement is (Enforcement.BEST_EFFORT if late else Enforcement.ENFORCED)
    assert statuses["io_write"].detail.startswith(f"on {found.name}")


def test_the_disk_of_a_directory_that_is_named(link: Link, side: RootSide) -> None:
    if "io_read" in unsupported(link):
        pytest.skip("nothing limits the disk here")
    base = os.path.dirname(side.state_dir)
    os.mkdir(f"{base}/named")
    os.symlink("named", f"{base}/link")
    job = link.start("/bin/sleep", "1000", workdir=f"{base}/link", limits=Limits(io_read_bps=_MIB))
    (status,) = (status for status in job.limits if status.name == "io_read")
    assert (status.value, status.detail) == ("1M/s", f"on {disk.of_path(base).name}")
    changed = link.ask(messages.UpdateJob(CALLER, job.job_id, Limits(io_read_ops=100), force=False)).record
    assert {status.name: status.value for status in changed.limits}["io_read_ops"] == "100"
    link.stop(job.job_id, force=True)


# What is copied past the page cache under each, which takes two seconds and a half.
_RATES = {
    "io_read": (Limits(io_read_bps=4 * _MIB), _MIB, 10),
    "io_write": (Limits(io_write_bps=4 * _MIB), _MIB, 10),
    "io_read_ops": (Limits(io_read_ops=100), 4096, 250),
    "io_write_ops": (Limits(io_write_ops=100), 4096, 250),
}


def copy(link: Link, name: str, workdir: str = "") -> tuple[JobRecord, float]:
    """A job that copies so much under this limit, and how many seconds the copying took."""
    limits, block, count = _RATES[name]
    script = f"dd if=/dev/zero of=file bs={block} count={count} oflag=direct"
    if name.startswith("io_read"):
        script += f" 2>/dev/null && dd if=file of=/dev/null bs={block} iflag=direct"
    record = link.start("/bin/sh", "-c", f"{script} 2>&1; rm file", limits=limits, workdir=workdir)
    said = link.read_log(link.wait_ended(record.job_id)).decode()
    return link.inspect(record.job_id), float(said.split(" copied, ")[1].split()[0])


@pytest.mark.parametrize("name", _RATES)
def test_a_disk_is_held_to_its_rate(link: Link, name: str) -> None:
    if name in unsupported(link):
        pytest.skip("nothing limits the disk here")
    record, seconds = copy(link, name)
    assert seconds > 2.5 * 0.9
    counted = record.usage.io_read_bytes if name.startswith("io_read") else record.usage.io_written_bytes
    _, block, count = _RATES[name]
    assert counted >= block * count


def test_a_job_stays_on_its_cpus(link: Link) -> None:
    if "cpuset" in unsupported(link):
        pytest.skip("there are no cpusets here")
    script = "import os; print(sorted(os.sched_getaffinity(0)))"
    for cpus in ([_CPUS[-1]], _CPUS):
        limits = Limits(cpuset=units.format_cpu_list(cpus))
        assert run(link, limits, "/usr/bin/python3", "-I", "-c", script)[1] == f"{cpus}\n"
    assert run(link, Limits(), "/usr/bin/python3", "-I", "-c", script)[1] == f"{_CPUS}\n"


def test_weights_divide_a_cpu(link: Link) -> None:
    if {"cpu_weight", "cpuset"} & unsupported(link):
        pytest.skip("weights and cpusets are not both here")
    # Both at the same time, however long an interpreter takes to start here.
    began = time.monotonic()
    run(link, Limits(), "/usr/bin/python3", "-I", "-c", "pass")
    begin = time.monotonic() + 4 * (time.monotonic() - began) + 2
    spin = (
        f"import time; time.sleep({begin} - time.monotonic()); used = time.process_time()\n"
        f"while time.monotonic() < {begin + 3}: pass\n"
        "print(time.process_time() - used)"
    )
    jobs = [
        link.start("/usr/bin/python3", "-I", "-c", spin, limits=Limits(cpu_weight=weight, cpuset=str(_CPUS[0])))
        for weight in (100, 300)
    ]
    light, heavy = (float(link.read_log(link.wait_ended(job.job_id))) for job in jobs)
    # Other work on this CPU takes its share of both.
    assert 2 < heavy / light < 4


def test_a_quota_is_kept(link: Link) -> None:
    spin = "import time; end = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
    # So little that it is held back where others leave it next to nothing, too.
    record, _ = run(link, Limits(cpu_millis=50), "/usr/bin/python3", "-I", "-c", spin)
    lasted_usec = (record.ended_ns - record.started_ns) // 1000
    assert record.usage.cpu_usec < lasted_usec * 0.05 * 1.3
    assert record.usage.throttled_usec > 0


def test_memory_and_swap_together_are_the_end(link: Link) -> None:
    limits = Limits(memory_bytes=32 * _MIB, swap_bytes=8 * _MIB)
    record, _ = run(link, limits, "/usr/bin/python3", "-I", "-c", "data = bytearray(200 << 20)")
    assert record.end_reason is EndReason.OOM_KILLED
    assert record.usage.memory_peak_bytes <= 40 * _MIB


@pytest.mark.parametrize(
    ("swap_bytes", "reason"),
    [(48 * _MIB, EndReason.EXITED), (8 * _MIB, EndReason.OOM_KILLED), (None, EndReason.OOM_KILLED)],
)
def test_swap_is_there_as_far_as_it_was_asked_for(
    link: Link, side: RootSide, swap_bytes: int | None, reason: EndReason
) -> None:
    if "swap" in unsupported(link):
        pytest.skip("nothing limits swap here")
    with swap(Path(side.state_dir).parent, 128 * _MIB):
        limits = Limits(memory_bytes=32 * _MIB, swap_bytes=swap_bytes)
        record, _ = run(link, limits, "/usr/bin/python3", "-I", "-c", "data = b'x' * (48 << 20)")
    assert record.end_reason is reason


def test_a_base_that_somebody_removed_is_made_again(link: Link) -> None:
    job = link.start("/bin/sleep", "1000", limits=_ALL, best_effort=True)
    bases = {os.path.dirname(path) for path in cgroups(job.job_id)}
    link.stop(job.job_id, force=True)
    for base in bases:
        os.rmdir(base)
    again = link.start("/bin/true", limits=_ALL, best_effort=True)
    assert {each.enforcement for each in again.limits} <= {Enforcement.ENFORCED, Enforcement.BEST_EFFORT}
    assert link.wait_ended(again.job_id).exit_code == 0


def test_a_cpu_that_is_not_there(link: Link) -> None:
    with pytest.raises(
        InvalidField, match=rf"limits\.cpuset: 8000 is not among this host's CPUs for jobs; .* {_CPUS[0]}"
    ):
        link.start("/bin/true", limits=Limits(cpuset=f"{_CPUS[0]},8000"))


def test_the_cpus_of_the_jobs_cgroup_are_all_that_there_are() -> None:
    """Whichever the agent itself may run on, and also if an administrator changes them."""
    with fresh_root_side() as own:
        link = own.link(subscribe=True)
        if "cpuset" in unsupported(link) or len(_CPUS) == 1:
            pytest.skip("there is no choice of CPUs here")
        first, last = str(_CPUS[0]), str(_CPUS[-1])
        job = link.start("/bin/sleep", "1000", limits=Limits(cpuset=first))
        base = limit_file(job, "cpuset").parent.parent
        (base / "cpuset.cpus").write_text(first)
        assert maximum(link, "cpuset") == first
        wrong = rf"limits\.cpuset: {last} is not among this host's CPUs for jobs; .* {first}"
        with pytest.raises(InvalidField, match=wrong):
            link.start("/bin/true", limits=Limits(cpuset=last))
        with pytest.raises(InvalidField, match=wrong):
            link.ask(messages.UpdateJob(CALLER, job.job_id, Limits(cpuset=last), force=False))
        (base / "cpuset.cpus").write_text(units.format_cpu_list(_CPUS))
        changed = link.ask(messages.UpdateJob(CALLER, job.job_id, Limits(cpuset=last), force=False)).record
        assert {status.name: status.value for status in changed.limits}["cpuset"] == last
        assert os.sched_getaffinity(job.pid) == {_CPUS[-1]}
        link.stop(job.job_id, force=True)


def maximum(link: Link, name: str) -> str:
    limits = link.ask(messages.Hello(messages.PROTOCOL, subscribe=False)).host.limits
    return {each.name: str(each.maximum) for each in limits}[name]


def test_a_directory_that_is_on_no_disk(link: Link) -> None:
    with pytest.raises(
        LimitUnsupported, match=r"limits\.io_write cannot be enforced .* /dev is on (devtmpfs|tmpfs)"
    ):
        link.start("/bin/true", workdir="/dev", limits=Limits(io_write_bps=_MIB))
    job = link.start("/bin/true", workdir="/dev", limits=Limits(io_write_bps=_MIB), best_effort=True)
    (io,) = (status for status in job.limits if status.name == "io_write")
    assert (io.enforcement, io.value) == (Enforcement.UNSUPPORTED, "")


def test_a_job_of_an_agent_that_knew_fewer_controllers_is_taken_over(link: Link, side: RootSide) -> None:
    job = link.start("/bin/sleep", "1000")
    if link.welcome.host.cgroup_mode == "v2":
        pytest.skip("v2 has one directory for all of them")
    (blkio,) = (path for path in cgroups(job.job_id) if "/blkio/" in path)
    with open(f"{os.path.dirname(blkio)}/tasks", "w") as file:
        file.write(str(job.pid))
    os.rmdir(blkio)
    os.kill(side.supervisor_pid(), 9)
    link.drain()
    link = side.reconnect(subscribe=True)
    assert link.stop(job.job_id, force=True).end_reason is EndReason.STOPPED
    assert cgroups(job.job_id) == []


# Disks.


def test_the_disk_of_a_partition_is_the_whole_one(link: Link, side: RootSide) -> None:
    with partition(Path(side.state_dir).parent) as (place, name):
        assert disk.of_path(str(place)).name == name
        os.chmod(place, 0o777)  # noqa: S103
        if "io_write_ops" in unsupported(link):
            pytest.skip("nothing limits the disk here")
        record, seconds = copy(link, "io_write_ops", str(place))
        (status,) = (status for status in record.limits if status.name == "io_write_ops")
        assert status.detail.startswith(f"on {name}")
        assert seconds > 2.5 * 0.9


def test_the_disk_below_an_overlay_is_that_of_its_upper_directory() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="jobworker-test-", dir="/var/lib") as base,
        tempfile.TemporaryDirectory(prefix="jobworker-test-", dir="/dev/shm") as lower,
    ):
        for name in ("upper", "work", "merged"):
            os.mkdir(f"{base}/{name}")
        # Of a layer on another file system; its device's number is one that no mount has.
        Path(lower, "file").touch()
        options = f"lowerdir={lower},upperdir={base}/upper,workdir={base}/work"
        done = subprocess.run(
            ["mount", "-t", "overlay", "jobworker-test", "-o", options, f"{base}/merged"], check=False
        )
        if done.returncode:
            pytest.skip("overlay can't be mounted here")
        try:
            for path in (f"{base}/merged", f"{base}/merged/file"):
                assert disk.of_path(path) == disk.of_path(base)
        finally:
            subprocess.run(["umount", f"{base}/merged"], check=True)


@pytest.mark.parametrize(("journal", "late"), [("ordered", ""), ("journal", "with ext4 (data=journal) direct")])
def test_whether_a_file_system_tells_whose_late_writes_are(tmp_path: Path, journal: str, late: str) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 * _MIB)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    place = tmp_path / "place"
    place.mkdir()
    done = subprocess.run(["mount", "-o", f"loop,data={journal}", image, place], check=False)
    if done.returncode:
        pytest.skip("no image can be mounted here")
    try:
        assert (told := disk.of_path(str(place)).late_writes).startswith(late)
        assert bool(told) == bool(late)
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("path", ["/proc", "/sys", "/dev/shm"])  # noqa: S108
def test_what_is_on_no_disk(path: str) -> None:
    with pytest.raises(disk.NoDisk, match="has no disk"):
        disk.of_path(path)

"""Starts whose files are where nobody answers, or whose process is stopped: answered, and nobody else's affair."""

from __future__ import annotations

import fcntl
import os
import select
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobworker.errors import (
    AgentUnavailable,
    CapExceeded,
    HostFault,
    JobWorkerError,
    LimitUnsupported,
    QuotaExceeded,
    SandboxUnsupported,
    StartFailed,
    UpgradeRefused,
)
from jobworker.jobs import EndReason, Idempotency, JobSpec
from jobworker.kernel.spawn import has_executed
from jobworker.limits import Enforcement, Limits
from jobworker.settings.schema import IsolationSettings, QuotaSettings
from jobworker.wire import messages
from support.callers import caller
from support.hanging import Hanging, hanging
from support.leftovers import cgroups
from support.link import CALLER, DEADLINE, Link
from support.root_side import RootSide, fresh_root_side, root_side
from support.seized import seized
from support.waiting import wait_for_end

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs fuse(4)"),
]

_WAIT = 2
_NOBODY = 65534
_EXEC = '            self._begin("exec")\n'
_HANG = f"            if b'slow' in self._command.argv: signal.pause()\n{_EXEC}"


@pytest.fixture
def side(tmp_path: Path) -> Iterator[RootSide]:
    """One that does not wait for long."""
    tmp_path.chmod(0o755)
    quotas = QuotaSettings(active_jobs=2)
    with root_side(str(tmp_path), own_package=True, kill_wait_ms=500, quotas=quotas) as running:
        change(running, "supervisor/launch.py", "_LAUNCH_WAIT = 15.0\n", f"_LAUNCH_WAIT = {_WAIT}\n")
        yield running


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[RootSide]:
    """One that waits for longer than a test does."""
    tmp_path.chmod(0o755)
    with root_side(str(tmp_path), own_package=True, kill_wait_ms=200) as running:
        change(running, "supervisor/launch.py", "_LAUNCH_WAIT = 15.0\n", "_LAUNCH_WAIT = 3600.0\n")
        yield running


@pytest.fixture
def dead(tmp_path: Path) -> Iterator[Hanging]:
    with hanging(str(tmp_path / "dead")) as mounted:
        yield mounted


def change(side: RootSide, name: str, line: str, by: str) -> None:
    """Have the next supervisor, which is started now, run another line in the place of one."""
    side.change(name, line, by)
    side.kill_supervisor(side.link())


def hang(link: Link, dead: Hanging, *, command: str = "/bin/true", key: str = "", **spec: Any) -> int:
    """Have a start hang; the number of the request."""
    seq = link.send(messages.StartJob(CALLER, JobSpec(command, **spec), Idempotency(key, key)))
    dead.wait_until_asked()
    return seq


def only_job(side: RootSide) -> str:
    """The id of the one that there is."""
    (job_id,) = os.listdir(os.path.join(side.state_dir, "jobs"))
    return job_id


def process_of(job_id: str) -> int:
    """The one that is to execute the command.

    Raises:
        LookupError: there is none yet.
    """
    pids = {int(line) for path in cgroups(job_id) for line in Path(path, "cgroup.procs").read_text().split()}
    return [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text() == "jw-supervisor\n"][0]  # noqa: RUF015


def gone(side: RootSide, job_id: str, pid: int) -> None:
    side.wait_for(lambda: not cgroups(job_id) and not os.path.exists(f"/proc/{pid}"))


@pytest.mark.parametrize("sandbox", ["standard", "strict"])
@pytest.mark.parametrize("step", ["chdir", "exec"])
def test_it_fails_in_time_and_says_where(side: RootSide, dead: Hanging, sandbox: str, step: str) -> None:
    link, other = side.link(), side.link(subscribe=True)
    before = side.open_files(link)
    path = f"{dead.path}/x"
    where = {"workdir": path} if step == "chdir" else {"command": path}
    seq = hang(link, dead, sandbox=sandbox, key="k", **where)
    job_id = only_job(side)
    pid = process_of(job_id)
    other.wait_ended(other.start("/bin/true").job_id)
    with pytest.raises(StartFailed, match=rf"not done within {_WAIT} s") as caught:
        link.answer(seq)
    assert (caught.value.step, caught.value.errno_name, caught.value.path) == (step, "ETIMEDOUT", path)
    assert only_job(side) != job_id
    # The process is still there, and takes the place of a job.
    assert not has_executed(pid)
    running = link.start("/bin/sleep", "1000")
    with pytest.raises(QuotaExceeded):
        link.start("/bin/true")
    dead.let_go()
    gone(side, job_id, pid)
    link.stop(running.job_id, force=True)
    assert side.open_files(link) == before
    # Its key is that of no job.
    with pytest.raises(StartFailed, match="ENOENT"):
        link.ask(messages.StartJob(CALLER, JobSpec("/bin/true", workdir=path), Idempotency("k", "k")))


def test_of_one_that_can_be_killed_nothing_is_left(side: RootSide, dead: Hanging) -> None:
    link = side.link()
    before = side.open_files(link)
    seq = hang(link, dead, workdir=f"{dead.path}/x")
    job_id = only_job(side)
    pid = process_of(job_id)
    # Once it has the user's rights, another job of that user can do the same.
    os.kill(pid, signal.SIGSTOP)
    dead.let_go()
    with pytest.raises(StartFailed, match="somebody has stopped the process"):
        link.answer(seq)
    assert (os.listdir(os.path.join(side.state_dir, "jobs")), cgroups(job_id)) == ([], [])
    assert not os.path.exists(f"/proc/{pid}")
    assert side.open_files(link) == before


def test_an_upgrade_does_not_wait_for_longer(side: RootSide, dead: Hanging) -> None:
    link = side.link()
    hang(link, dead, workdir=f"{dead.path}/x", key="k")
    job_id = only_job(side)
    link.ask(messages.Upgrade())
    link.drain()
    link = side.reconnect(subscribe=True)
    # To the next one it is no job, whatever had been promised for its key.
    assert os.listdir(os.path.join(side.state_dir, "jobs")) == []
    link.wait_ended(link.start("/bin/true").job_id)
    assert cgroups(job_id)
    dead.let_go()
    side.wait_for(lambda: not cgroups(job_id))


def test_one_that_waits_for_a_mount_holds_no_lock(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    shared = tmp_path / "dead" / "shared"
    shared.mkdir(parents=True)
    isolation = IsolationSettings(missing="refuse", writable=(str(shared),))
    with root_side(str(tmp_path / "side"), isolation=isolation) as side:
        link = side.link()
        dead = Hanging(str(shared.parent))
        try:
            hang(link, dead)
            pid = process_of(only_job(side))
            side.freeze_keeper()
            supervisor = side.supervisor_pid()
            os.kill(supervisor, signal.SIGKILL)
            wait_for_end(supervisor)
            assert not has_executed(pid)
            with open(os.path.join(side.state_dir, "lock")) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            dead.let_go()
            side.thaw_keeper()
        again = side.reconnect(subscribe=True)
        again.wait_ended(again.start("/bin/true").job_id)


def test_one_that_stays_writable_keeps_no_supervisor_from_starting(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    shared, other = tmp_path / "dead" / "shared", tmp_path / "other"
    for path in (shared, other):
        path.mkdir(parents=True)
        path.chmod(0o777)
    isolation = IsolationSettings(missing="refuse", writable=(str(shared), str(other)))
    with root_side(str(tmp_path / "side"), own_package=True, isolation=isolation) as side:
        job = side.link().start("/bin/sleep", "1000")
        dead = Hanging(str(shared.parent))
        try:
            change(side, "supervisor/isolation.py", "_PATIENCE = 15.0\n", f"_PATIENCE = {4 * _WAIT}\n")
            link = side.link(subscribe=True)
            assert link.inspect(job.job_id).pid == job.pid
            assert f'it is left out", "paths": ["{shared}"]' in side.log()
            # The rest is as ever.
            touched = link.start("/bin/touch", str(other / "it"))
            assert (link.wait_ended(touched.job_id).exit_code, touched.sandbox.missing) == (0, ())
            # What still looks has nothing of the supervisor's.
            looking = side.child("jw-look")
            assert len(os.listdir(f"/proc/{looking}/fd")) == 1
        finally:
            dead.let_go()
        link.stop(job.job_id, force=True)


def test_nor_does_trying_out_sandboxes(side: RootSide) -> None:
    job = side.link().start("/bin/sleep", "1000")
    path = Path(side.package, "supervisor/isolation.py")
    path.write_text(path.read_text().replace("_PATIENCE = 15.0\n", f"_PATIENCE = {_WAIT}\n"))
    change(side, "supervisor/isolation.py", "        program = seccomp.make()\n", "        signal.pause()\n")
    link = side.link()
    with pytest.raises(SandboxUnsupported, match="was not done within"):
        link.start("/bin/true")
    link.stop(job.job_id, force=True)


def test_told_to_end_the_agent_does_not_wait_for_it(patient: RootSide, dead: Hanging) -> None:
    link = patient.link()
    seq = hang(link, dead, workdir=f"{dead.path}/x")
    job_id = only_job(patient)
    patient.keeper.terminate()
    with pytest.raises(AgentUnavailable):
        link.answer(seq)
    assert patient.close() == 0
    assert os.listdir(os.path.join(patient.state_dir, "jobs")) == []
    dead.let_go()
    patient.start_again()
    patient.wait_for(lambda: not cgroups(job_id))


def test_told_to_end_it_does_not_upgrade_first(patient: RootSide, dead: Hanging) -> None:
    link, owner = patient.link(), patient.link()
    seq = hang(link, dead, workdir=f"{dead.path}/x")
    upgrade = owner.send(messages.Upgrade())
    other = patient.link()
    patient.wait_for(lambda: not other.takes_jobs())
    ended = os.pidfd_open(patient.supervisor_pid())
    os.kill(patient.supervisor_pid(), signal.SIGTERM)
    with pytest.raises(AgentUnavailable):
        link.answer(seq)
    with pytest.raises(UpgradeRefused, match="the agent is ending"):
        owner.answer(upgrade)
    assert select.select([ended], [], [], DEADLINE)[0]
    os.close(ended)
    assert patient.keeper.wait(DEADLINE) == 0


def test_a_tracer_that_keeps_it_is_waited_for(side: RootSide) -> None:
    change(side, "kernel/spawn.py", _EXEC, _HANG)
    link = side.link()
    before, supervisor = side.open_files(link), side.supervisor_pid()
    seq = link.send(messages.StartJob(CALLER, JobSpec("/bin/true", ("slow",)), Idempotency("", "")))
    side.wait_for(lambda: bool(os.listdir(os.path.join(side.state_dir, "jobs")) and process_of(only_job(side))))
    job_id = only_job(side)
    with seized(process_of(job_id)):
        with pytest.raises(JobWorkerError, match=rf"not done within {_WAIT} s"):
            link.answer(seq)
        # It is dead, and not to be waited for yet.
        assert link.start("/bin/sleep", "1000").pid
    side.wait_for(lambda: not cgroups(job_id))
    side.wait_for(lambda: side.open_files(link) < before + 30)
    assert side.supervisor_pid() == supervisor


def test_below_an_init_none_that_never_came_to_its_command_is_a_job() -> None:
    with fresh_root_side(as_user=_NOBODY) as side:
        change(side, "supervisor/launch.py", "_LAUNCH_WAIT = 15.0\n", "_LAUNCH_WAIT = 0.05\n")
        change(side, "kernel/spawn.py", _EXEC, _HANG)
        link = side.link()
        for _ in range(20):
            with pytest.raises(JobWorkerError, match="not done within"):
                link.start("/bin/true", "slow")
        assert os.listdir(os.path.join(side.state_dir, "jobs")) == []


def test_what_is_executed_in_the_instant_of_the_kill_is_a_job(side: RootSide, tmp_path: Path) -> None:
    counted = tmp_path / "counted"
    counted.touch()
    counted.chmod(0o666)
    change(side, "kernel/spawn.py", _EXEC, f'{_EXEC}            __import__("time").sleep({2 * _WAIT})\n')
    # The kill is under way until it has come there.
    kill = "            self._stopping.kill()\n"
    wait = f"            while not os.path.getsize({str(counted)!r}): time.sleep(0.01)\n"
    change(side, "supervisor/launch.py", kill, wait + kill)
    link = side.link(subscribe=True)
    spec = JobSpec("/bin/sh", ("-c", f"echo executed >> {counted}; sleep 1000"))
    start = messages.StartJob(CALLER, spec, Idempotency("k", "k"))
    job = link.ask(start).record
    ended = link.wait_ended(job.job_id)
    assert (ended.end_reason, ended.signal) == (EndReason.STOPPED, signal.SIGKILL)
    assert link.ask(start).record.job_id == job.job_id
    assert counted.read_text() == "executed\n"


# The disk of a directory, for limits of IO.

_IO = Limits(io_read_ops=1000)


@pytest.fixture
def looking() -> Iterator[RootSide]:
    """One that does not look for long, and at one directory; any user gets through to its own."""
    with fresh_root_side(own_package=True) as running:
        support = {each.name: each for each in running.link().welcome.host.limits}
        if support["io_read_ops"].enforcement is Enforcement.UNSUPPORTED:
            pytest.skip("nothing limits the disk here")
        path = Path(running.package, "supervisor/disks.py")
        path.write_text(path.read_text().replace("_MOST = 32\n", "_MOST = 1\n"))
        change(running, "supervisor/disks.py", "_WAIT = 10.0\n", f"_WAIT = {_WAIT}\n")
        yield running


@pytest.fixture
def silent(looking: RootSide) -> Iterator[Hanging]:
    with hanging(os.path.join(os.path.dirname(looking.state_dir), "dead")) as mounted:
        yield mounted


def is_looking(side: RootSide) -> bool:
    try:
        return bool(side.child("jw-disk"))
    except LookupError:
        return False


def refusal(link: Link, directory: str, **spec: Any) -> JobWorkerError:
    with pytest.raises(JobWorkerError) as caught:
        link.start("/bin/true", workdir=directory, limits=_IO, **spec)
    return caught.value


def test_its_disk_is_not_waited_for(looking: RootSide, silent: Hanging) -> None:
    link, other = looking.link(), looking.link(subscribe=True)
    before = looking.open_files(link)
    path = f"{silent.path}/x"
    seq = hang(link, silent, workdir=path, limits=_IO)
    # Whoever has asked, the others are served.
    other.wait_ended(other.start("/bin/true").job_id)
    assert isinstance(refusal(other, f"{silent.path}/y"), CapExceeded)
    with pytest.raises(HostFault) as caught:
        link.answer(seq)
    assert (caught.value.operation, caught.value.errno_name) == (f"looking for the disk of {path!r}", "ETIMEDOUT")
    # The helper can't be killed; nobody waits for it a second time.
    spec = JobSpec("/bin/true", workdir=path, limits=_IO)
    for request in (
        messages.StartJob(CALLER, replace(spec, best_effort=True)),
        messages.StartJob(CALLER, spec, dry_run=True),
    ):
        late, behind = link.send(request), link.send(messages.Measure())
        with pytest.raises(HostFault) as again:
            link.answer(late)
        assert str(again.value) == str(caught.value)
        assert not link.events, "what was asked behind it is answered behind it"
        link.answer(behind)
    silent.let_go()
    looking.wait_for(lambda: not is_looking(looking))
    told = refusal(link, path)
    assert isinstance(told, LimitUnsupported)
    assert "No such file" in told.reason
    assert looking.open_files(link) == before


def test_nor_are_those_of_principals_that_are_made_up(looking: RootSide, silent: Hanging) -> None:
    change(looking, "supervisor/disks.py", "_MOST_IN_ALL = 256\n", "_MOST_IN_ALL = 2\n")
    link, spec = looking.link(), JobSpec("/bin/true", workdir=f"{silent.path}/x", limits=_IO)
    first, second, third = (messages.StartJob(caller(f"spiffe://test/user/{n}"), spec) for n in range(3))
    waiting = [link.send(request) for request in (first, second)]
    with pytest.raises(CapExceeded, match="the number of directories that are looked at"):
        link.ask(third)
    for seq in waiting:
        with pytest.raises(HostFault):
            link.answer(seq)


def test_that_of_a_running_job_is_not_waited_for(looking: RootSide) -> None:
    link, other = looking.link(), looking.link(subscribe=True)
    directory = Path(looking.state_dir).parent / "mounted" / "x"
    directory.mkdir(parents=True)
    job = link.start("/bin/sleep", "1000", workdir=str(directory))
    silent = Hanging(str(directory.parent))
    try:
        seq = link.send(messages.UpdateJob(CALLER, job.job_id, _IO, force=False))
        silent.wait_until_asked()
        other.wait_ended(other.start("/bin/true").job_id)
        with pytest.raises(HostFault, match=r"looking for the disk of .*: ETIMEDOUT"):
            link.answer(seq)
    finally:
        silent.let_go()
    link.stop(job.job_id, force=True)


def test_an_upgrade_does_not_wait_for_a_disk(looking: RootSide, silent: Hanging) -> None:
    link = looking.link()
    hang(link, silent, workdir=f"{silent.path}/x", limits=_IO)
    link.ask(messages.Upgrade())
    link.drain()
    link = looking.reconnect(subscribe=True)
    link.wait_ended(link.start("/bin/true").job_id)

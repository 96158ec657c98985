"""Jobs outlive the supervisor: bytes, exit codes and limits of what ran when it was killed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import resource
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from jobworker.errors import AgentUnavailable, UpgradeRefused
from jobworker.jobs import EndReason, JobRecord, State, new_job_id
from jobworker.limits import Limits
from jobworker.wire import messages
from support import processes
from support.gates import gate, open_gate
from support.leftovers import cgroups, descriptors, processes_of
from support.link import CALLER, DEADLINE, Link
from support.root_side import RootSide, fresh_root_side, root_side, tells_ends
from support.strace import attached, needs_strace, without_programs
from support.waiting import wait_for_end

pytestmark = pytest.mark.root


def test_a_running_job_goes_on(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    script = "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 5"
    limits = Limits(cpu_millis=900, memory_bytes=64 << 20, pids=20)
    before = link.start("/bin/sh", "-c", script, limits=limits)
    link.wait_output(before.job_id)
    for _ in range(3):
        link = own_side.kill_supervisor(link)
    after = link.inspect(before.job_id)
    assert (after.pid, after.limits, after.started_ns) == (before.pid, before.limits, before.started_ns)
    ended = link.wait_ended(before.job_id)
    assert (ended.end_reason, ended.exit_code) == (EndReason.EXITED, 5)
    assert link.read_log(ended) == "".join(f"{i}\n" for i in range(200)).encode()
    assert cgroups(before.job_id) == []


def test_a_flood_loses_no_byte(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    total = 96 << 20
    script = (
        "import hashlib, os, sys\n"
        "digest, chunk = hashlib.sha256(), os.urandom(1 << 20)\n"
        f"for i in range({total >> 20}):\n"
        "  data = bytes([i]) + chunk[1:]\n"
        "  digest.update(data); sys.stdout.buffer.write(data)\n"
        "sys.stdout.flush(); open('digest', 'w').write(digest.hexdigest())\n"
    )
    record = link.start("/usr/bin/python3", "-c", script)
    link.wait_output(record.job_id)
    for _ in range(5):
        link = own_side.kill_supervisor(link)
    ended = link.wait_ended(record.job_id)
    output = link.read_log(ended)
    assert len(output) == total
    digest = Path(own_side.state_dir, "jobs", record.job_id, "work", "digest")
    assert hashlib.sha256(output).hexdigest() == digest.read_text()


def test_an_exit_code_is_kept_while_nobody_looks(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    records = [
        link.start("/bin/sh", "-c", f"read x < {gate(own_side, code)}; echo done; exit {code}")
        for code in range(1, 11)
    ]
    own_side.freeze_keeper()
    try:
        os.kill(own_side.supervisor_pid(), signal.SIGKILL)
        for number in range(1, 11):
            open_gate(own_side, number)
        for record in records:
            wait_for_end(record.pid)
    finally:
        own_side.thaw_keeper()
    link.close()
    link = own_side.reconnect(subscribe=True)
    for code, record in enumerate(records, 1):
        ended = link.wait_ended(record.job_id)
        assert (ended.end_reason, ended.exit_code) == (EndReason.EXITED, code)
        assert link.read_log(ended) == b"done\n"
        assert processes_of(record.uid) == []


def test_a_stop_under_way_is_brought_to_its_end(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.start(
        "/bin/sh", "-c", "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    )
    link.wait_output(record.job_id)
    assert link.stop(record.job_id, wait=False).state is State.STOPPING
    link = own_side.kill_supervisor(link)
    ended = link.wait_ended(record.job_id)
    assert (ended.end_reason, ended.exit_code) == (EndReason.STOPPED, 3)


def test_a_timeout_counts_from_the_start(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/bin/sleep", "1000", timeout_ms=500)
    link = own_side.kill_supervisor(link)
    assert link.wait_ended(record.job_id).end_reason is EndReason.TIMED_OUT


def test_ended_jobs_and_their_output_are_still_there(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    ended = [link.wait_ended(link.start("/bin/echo", str(i)).job_id) for i in range(20)]
    link = own_side.kill_supervisor(link)
    assert [link.inspect(record.job_id) for record in ended] == ended
    assert [link.read_log(record) for record in ended] == [f"{i}\n".encode() for i in range(20)]


def test_descriptors_do_not_add_up(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    records = [link.start("/bin/sleep", "1000") for _ in range(10)]
    # Adopted logs are opened when there is something to write.
    link = own_side.kill_supervisor(link)
    before = own_side.open_files(link), descriptors(own_side.keeper.pid)
    for _ in range(3):
        link = own_side.kill_supervisor(link)
    assert (own_side.open_files(link), descriptors(own_side.keeper.pid)) == before
    for record in records:
        link.stop(record.job_id, force=True)
    # What the keeper is told is told in order: it has let go of these before it is asked to hold the next.
    link = own_side.kill_supervisor(link)
    assert descriptors(own_side.keeper.pid) == before[1] - 30


def test_a_broken_record_is_put_aside_and_named(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    ended = link.wait_ended(link.start("/bin/echo", "fine").job_id)
    broken = link.wait_ended(link.start("/bin/echo", "broken").job_id)
    path = os.path.join(own_side.state_dir, "jobs", broken.job_id, "job.json")
    with open(path, "r+b") as file:
        file.truncate(100)
    os.mkdir(os.path.join(own_side.state_dir, "jobs", "not-a-job"))
    link = own_side.kill_supervisor(link)
    assert link.inspect(ended.job_id) == ended
    assert sorted(os.listdir(os.path.join(own_side.state_dir, "quarantine"))) == sorted(
        (broken.job_id, "not-a-job")
    )
    assert f'"event": "quarantined", "job": "{broken.job_id}"' in own_side.log()


def test_a_process_that_was_being_made_holds_the_lock_for_a_moment(own_side: RootSide) -> None:
    link = own_side.link()
    job = link.start("/bin/sleep", "1000")
    own_side.freeze_keeper()
    os.kill(own_side.supervisor_pid(), signal.SIGKILL)
    link.drain()
    # Stands for a child of that supervisor which has not executed its command yet.
    fd = os.open(os.path.join(own_side.state_dir, "lock"), os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    waiting = re.compile(rf"-> FLOCK .*:{os.fstat(fd).st_ino} ")
    own_side.thaw_keeper()
    own_side.wait_for(lambda: bool(waiting.search(Path("/proc/locks").read_text())))
    os.close(fd)
    assert own_side.reconnect().inspect(job.job_id).pid == job.pid
    assert "cannot start" not in own_side.log()


def test_a_second_agent_on_the_same_directory_is_refused(own_side: RootSide) -> None:
    with pytest.raises(RuntimeError, match="another agent is using"):
        RootSide(os.path.dirname(own_side.state_dir))
    link = own_side.link()
    assert link.stop(link.start("/bin/sleep", "1000").job_id).ended_ns


def test_the_keeper_may_die(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    script = "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 5"
    counting = link.start("/bin/sh", "-c", script)
    closing = link.start("/bin/sh", "-c", "exec 2>&-; echo $$; read line < /proc/self/fd/0; sleep 1000")
    link.wait_output(counting.job_id)
    supervisor = own_side.supervisor_pid()
    own_side.kill_keeper()
    link.drain()
    link = own_side.reconnect(subscribe=True)
    assert own_side.supervisor_pid() != supervisor
    # The new keeper does what the old one did, over the death of a supervisor and an upgrade of both.
    link = own_side.kill_supervisor(link)
    link.ask(messages.Upgrade())
    link.drain()
    link = own_side.reconnect(subscribe=True)
    after = link.start("/bin/sh", "-c", "(setsid sleep 1000 &); echo more; exit 6")
    ended = link.wait_ended(counting.job_id)
    assert (ended.end_reason, ended.exit_code) == (EndReason.EXITED, 5)
    assert link.read_log(ended) == "".join(f"{i}\n" for i in range(200)).encode()
    assert link.stop(after.job_id).exit_code == 6
    assert link.stop(closing.job_id).end_reason is EndReason.STOPPED
    assert [cgroups(record.job_id) for record in (counting, closing, after)] == [[], [], []]
    assert "the keeper is gone" in own_side.log()


def test_a_keeper_is_become_once_there_are_descriptors_for_that(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/bin/sh", "-c", f"read go < {gate(own_side, 1)}; exit 4")
    pid = own_side.supervisor_pid()
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    own_side.kill_keeper()
    own_side.wait_for(lambda: "could not become a keeper" in own_side.log())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    link.drain()
    link = own_side.reconnect(subscribe=True)
    open_gate(own_side, 1)
    ended = link.wait_ended(record.job_id)
    assert (ended.end_reason, ended.exit_code) == (EndReason.EXITED, 4)


@needs_strace
def test_a_keeper_is_become_once_its_program_can_be_executed(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    pid, before = own_side.supervisor_pid(), own_side.open_files(link)
    record = link.start("/bin/sh", "-c", f"exec 2>&-; echo; read go < {gate(own_side, 1)}; exit 4")
    link.wait_output(record.job_id)

    def open_files() -> int:
        link.ask(messages.Hello(messages.PROTOCOL, subscribe=False))
        return descriptors(pid) - before

    with without_programs(pid) as tries:
        own_side.kill_keeper()
        own_side.wait_for(lambda: tries() > 0)
        with pytest.raises(AgentUnavailable):
            link.start("/bin/true")
        # The new program would ask the keeper for the jobs.
        with pytest.raises(UpgradeRefused, match="the keeper is gone"):
            link.ask(messages.Upgrade())
        kept = open_files()
        own_side.wait_for(lambda: tries() > 2)
        assert open_files() == kept
    link.drain()
    link = own_side.reconnect(subscribe=True)
    assert own_side.log().count("could not become a keeper") == 1
    open_gate(own_side, 1)
    ended = link.wait_ended(record.job_id)
    assert (ended.end_reason, ended.exit_code) == (EndReason.EXITED, 4)
    assert link.wait_ended(link.start("/bin/true").job_id).exit_code == 0


def test_a_keeper_is_become_once_its_program_is_whole() -> None:
    # As half an installation leaves it: executed, it would end, and with it all that the jobs write to.
    with fresh_root_side(own_package=True) as side:
        link = side.link(subscribe=True)
        record = link.start("/bin/sh", "-c", f"read go < {gate(side, 1)}; echo; exit 4")
        side.change("keeper/keeper.py", "import select\n", "import select\nimport not_there\n")
        side.kill_keeper()
        side.wait_for(lambda: "could not become a keeper" in side.log())
        assert "No module named 'not_there'" in side.log()
        side.change("keeper/keeper.py", "import not_there\n", "")
        link.drain()
        link = side.reconnect(subscribe=True)
        open_gate(side, 1)
        ended = link.wait_ended(record.job_id)
        assert (ended.end_reason, ended.exit_code, link.read_log(ended)) == (EndReason.EXITED, 4, b"\n")


@pytest.mark.parametrize("adopted", [False, True])
def test_a_job_that_ends_while_there_is_no_keeper(own_side: RootSide, *, adopted: bool) -> None:
    link = own_side.link(subscribe=True)
    gates = [gate(own_side, n) for n in range(20)]
    records = [link.start("/bin/sh", "-c", f"echo {n}; read go < {gates[n]}; exit {n}") for n in range(10)]
    waiting = [link.start("/bin/sh", "-c", f"read go < {gates[10 + n]}; echo {n}; exit {n}") for n in range(10)]
    if adopted:
        # Children of the keeper now, and nobody's when it dies.
        link = own_side.kill_supervisor(link)
    own_side.kill_keeper()
    for number in range(20):
        open_gate(own_side, number)
    link.drain()
    link = own_side.reconnect(subscribe=True)
    for n in range(10):
        for record in (records[n], waiting[n]):
            ended = link.wait_ended(record.job_id)
            assert link.read_log(ended) == b"%d\n" % n
            if adopted and not tells_ends():
                assert (ended.end_reason, ended.exit_code) == (EndReason.LOST, None)
            else:
                assert (ended.end_reason, ended.exit_code) == (EndReason.EXITED, n)


def test_what_ran_before_the_host_was_booted_is_lost_and_said_so(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    running = link.start("/bin/sh", "-c", "echo begun; exec sleep 1000")
    link.wait_output(running.job_id)
    ended = link.wait_ended(link.start("/bin/sh", "-c", "exit 5").job_id)
    own_side.freeze_keeper()
    os.kill(own_side.supervisor_pid(), signal.SIGKILL)
    path = os.path.join(own_side.state_dir, "jobs", running.job_id, "job.json")
    with open(path, "r+") as file:
        stored = json.load(file)
        assert stored["boot_id"]
        file.seek(0)
        json.dump(stored | {"boot_id": "another"}, file)
        file.truncate()
    own_side.thaw_keeper()
    link.drain()
    link = own_side.reconnect(subscribe=True)
    lost = link.wait_ended(running.job_id)
    assert (lost.end_reason, lost.exit_code) == (EndReason.LOST, None)
    assert lost.detail == "the host was booted anew meanwhile"
    assert link.read_log(lost) == b"begun\n"
    assert link.inspect(ended.job_id).exit_code == 5
    assert cgroups(running.job_id) == []


def test_an_agent_that_ends_takes_no_more_jobs(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/bin/sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done")
    link.wait_output(record.job_id)
    link.send(messages.Shutdown())
    # What a client may try again, as it may whatever else a restart cuts off.
    with pytest.raises(AgentUnavailable):
        link.start("/bin/true")
    link.stop(record.job_id, force=True, wait=False)
    link.close()
    assert own_side.keeper.wait(DEADLINE) == 0


def unread_answers(side: RootSide, link: Link) -> list[int]:
    """Ask for more than the connection holds, without reading any of it."""
    record, other = link.start("/bin/true", *["x" * 1000] * 4), side.link()
    asked = [link.send(messages.InspectJob(record.job_id)) for _ in range(400)]
    for _ in asked:
        # A round each, in which one of those is answered.
        other.ask(messages.Hello(messages.PROTOCOL, subscribe=False))
    return asked


def test_an_agent_that_is_told_to_end_stays_for_who_told_it(own_side: RootSide) -> None:
    link, gateway = own_side.link(), own_side.link(subscribe=True)
    record = gateway.start("/bin/sh", "-c", "sleep 1000")
    link.ask(messages.Shutdown())
    # As a gateway does which has to tell somebody.
    assert gateway.inspect(record.job_id).end_reason is EndReason.STOPPED
    link.close()
    gateway.drain()
    assert own_side.keeper.wait(DEADLINE) == 0


def test_who_reads_late_gets_the_answers_of_an_agent_that_ends(own_side: RootSide) -> None:
    link = own_side.link()
    asked = unread_answers(own_side, link)
    own_side.keeper.terminate()
    own_side.wait_for(lambda: '"ending"' in own_side.log())
    assert [link.receive().seq for _ in asked] == asked
    with pytest.raises(ConnectionResetError):
        link.receive()


def test_who_reads_late_gets_the_answers_of_the_version_before(own_side: RootSide) -> None:
    link = own_side.link()
    asked = [*unread_answers(own_side, link), link.send(messages.Upgrade())]
    own_side.wait_for(lambda: '"upgrading"' in own_side.log())
    assert [link.receive().seq for _ in asked] == asked
    with pytest.raises(ConnectionResetError):
        link.receive()


def test_the_end_of_the_agent_ends_its_jobs(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    records: list[JobRecord] = [link.start("/bin/sh", "-c", "sleep 1000 & sleep 1000") for _ in range(5)]
    assert own_side.close() == 0
    for record in records:
        assert processes_of(record.uid) == []
        assert cgroups(record.job_id) == []


def test_the_flusher_may_die(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    pid = own_side.flusher_pid()
    os.kill(pid, signal.SIGKILL)
    record = link.start("/bin/sh", "-c", "while :; do echo x; sleep 0.05; done")
    own_side.wait_for(lambda: own_side.flusher_pid() != pid)
    assert link.stop(record.job_id).end_reason is EndReason.STOPPED


def test_no_descriptor_left_for_a_connection(own_side: RootSide) -> None:
    link = own_side.link()
    pid = own_side.supervisor_pid()
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (own_side.open_files(link), limits[1]))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as waiting:
        waiting.connect(own_side.settings.socket_path)
        own_side.wait_for(lambda: "connection not accepted" in own_side.log())
        # Who is connected is served, and the loop does not go round and round.
        for _ in range(100):
            link.ask(messages.Hello(messages.PROTOCOL, subscribe=False))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        assert own_side.link().start("/bin/true").started_ns
    assert own_side.log().count("connection not accepted") < 10


def test_orphaned_cgroups_are_swept(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/bin/sleep", "1000")
    orphan = new_job_id()
    paths = [os.path.join(os.path.dirname(path), orphan) for path in cgroups(record.job_id)]
    with processes.running(["/bin/sleep", "1000"]) as left:
        for path in paths:
            os.mkdir(path)
            with open(f"{path}/cgroup.procs", "w") as file:
                file.write(str(left.pid))
        link = own_side.kill_supervisor(link)
        assert left.wait(DEADLINE) == -signal.SIGKILL
    own_side.wait_for(lambda: not cgroups(orphan))
    assert link.inspect(record.job_id).state is State.RUNNING
    assert cgroups(record.job_id)


@needs_strace
def test_what_has_changed_is_flushed(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    with (
        tempfile.NamedTemporaryFile() as file,
        attached(own_side.flusher_pid(), "-y", "-e", "trace=fsync,fdatasync", "-o", file.name),
    ):
        record = link.start("/bin/echo", "x")
        directory = f"/jobs/{record.job_id}"
        names = (f"job_{record.job_id}.log", f"job_{record.job_id}.idx")
        flushed = [f"{directory}/job.json", directory, *(f"{directory}/logs/{name}" for name in names)]
        own_side.wait_for(lambda: all(f"{path}>)" in Path(file.name).read_text() for path in flushed))


def test_told_to_end_while_a_supervisor_starts_it_ends(tmp_path: Path) -> None:
    with root_side(str(tmp_path), own_package=True) as side:
        link = side.link(subscribe=True)
        job = link.start("/bin/sleep", "1000")
        begun, line = tmp_path / "begun", "        recovery.run()\n"
        wait = f"        open({str(begun)!r}, 'w').close(); __import__('time').sleep(0.5)\n"
        side.change("supervisor/supervisor.py", line, wait + line)
        os.kill(side.supervisor_pid(), signal.SIGKILL)
        side.wait_for(begun.exists)
        assert side.close() == 0
        assert cgroups(job.job_id) == []


def test_what_has_a_reaped_process_s_id_later_does_not_end_for_it(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    spare = [link.wait_ended(link.start("/bin/true").job_id).job_id for _ in range(6)]
    record = link.start("/bin/sh", "-c", "setsid sleep 1000 & exit 3")
    own_side.wait_for(lambda: link.inspect(record.job_id).exit_code == 3)
    own_side.wait_for(lambda: not os.path.exists(f"/proc/{record.pid}"))
    for job_id in spare:
        # The helper that removes a job is the keeper's to reap, and the next process.
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(record.pid - 2))
        link.ask(messages.DeleteJob(CALLER, job_id))
        own_side.wait_for(lambda job_id=job_id: not Path(own_side.state_dir, "removed", job_id).exists())  # type: ignore[misc]
    link = own_side.kill_supervisor(link)
    assert link.inspect(record.job_id).exit_code == 3
    link.stop(record.job_id, force=True)

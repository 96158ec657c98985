"""Jobs as the supervisor runs them: what a job is given, how it ends, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from jobworker.errors import (
    InvalidField,
    JobAlreadyEnded,
    JobNotFound,
    JobWorkerError,
    StartFailed,
)
from jobworker.jobs import EndReason, JobRecord, State
from jobworker.kernel.cgroup.files import CgroupDir
from jobworker.limits import Limits
from jobworker.settings import schema
from support import strace
from support.leftovers import cgroups, processes_of
from support.link import Link
from support.root_side import RootSide, root_side
from support.waiting import until

pytestmark = pytest.mark.root


def run(link: Link, script: str, **spec: Any) -> tuple[JobRecord, str]:
    """Run a shell script to its end; its record and all of its output."""
    record = link.wait_ended(link.start("/bin/sh", "-c", script, **spec).job_id)
    return record, link.read_log(record).decode()


def test_exit_code_and_output(link: Link) -> None:
    record, output = run(link, "echo out; echo err >&2; exit 3")
    assert (record.end_reason, record.exit_code, record.signal) == (EndReason.EXITED, 3, None)
    assert sorted(output.splitlines()) == ["err", "out"]
    assert record.output_ended
    assert record.created_ns <= record.started_ns <= record.ended_ns


def test_a_job_that_ends_itself_by_a_signal(link: Link) -> None:
    record, _ = run(link, "kill -SEGV $$")
    assert (record.end_reason, record.exit_code, record.signal) == (EndReason.SIGNALED, None, signal.SIGSEGV)


def test_only_the_environment_that_was_asked_for(link: Link) -> None:
    record = link.start("/usr/bin/env", env=(("A", "1"), ("B", "ü \n x")))
    assert link.read_log(link.wait_ended(record.job_id)) == "A=1\nB=ü \n x\n".encode()


def test_only_descriptors_0_to_2(link: Link) -> None:
    script = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')))"
    record = link.wait_ended(link.start("/usr/bin/python3", "-I", "-c", script).job_id)
    # 3 is what listdir itself has open.
    assert link.read_log(record) == b"[0, 1, 2, 3]\n"


def test_its_output_can_be_opened_by_name(link: Link) -> None:
    _, output = run(link, "echo out > /dev/stdout; echo err > /dev/stderr; echo fd > /proc/self/fd/2")
    assert sorted(output.split()) == ["err", "fd", "out"]


def test_with_one_pipe_the_order_of_output_and_errors_is_kept(link: Link) -> None:
    count = "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); echo $i >&2; i=$((i+1)); done"
    record, output = run(link, count, merge_stderr=True)
    assert output == "".join(f"{number}\n" for number in range(2000))
    assert (record.end_reason, record.exit_code) == (EndReason.EXITED, 0)


def test_standard_input_is_empty(link: Link) -> None:
    assert run(link, "cat; echo end")[1] == "end\n"


def test_signals_are_as_a_program_expects_them(link: Link) -> None:
    _, output = run(link, "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status")
    blocked, ignored, _ = (int(line.split()[1], 16) for line in output.splitlines())
    # Signals 32 and 33 are the C library's own; no program can name them.
    assert (blocked, ignored & ~(0b11 << 31)) == (0, 0)


def test_limits_and_scores_are_not_the_agent_s(link: Link) -> None:
    _, output = run(link, "ulimit -Sn; cat /proc/self/oom_score_adj; nice")
    assert output.split() == [str(schema.JobSettings().open_files), "0", "0"]


@pytest.mark.parametrize("sandbox", ["standard", "strict"])
def test_a_job_may_have_fewer_files_open_than_the_agent(tmp_path: Path, sandbox: str) -> None:
    with root_side(str(tmp_path), open_files=64) as side:
        link = side.link(subscribe=True)
        running = [link.start("/bin/sleep", "1000", sandbox=sandbox) for _ in range(30)]
        assert side.open_files(link) > 64
        assert run(link, "ulimit -Sn", sandbox=sandbox)[1] == "64\n"
        for job in running:
            link.stop(job.job_id, force=True)


def test_own_session_user_and_directory(link: Link, side: RootSide) -> None:
    record, output = run(
        link, "id -u; id -g; id -G; pwd; umask; ps -o sid= -p $$; echo $$; echo x > file; ls -l file"
    )
    uid, gid, groups, directory, umask, session, pid, listed = output.splitlines()
    assert int(uid) == int(gid) == int(groups) == record.uid
    assert record.uid >= side.settings.jobs.first_uid
    assert directory == record.workdir == f"{side.state_dir}/jobs/{record.job_id}/work"
    assert umask == "0022"
    assert int(session) == int(pid) == record.pid
    assert str(record.uid) in listed


def test_no_privileges(link: Link) -> None:
    _, output = run(link, "grep -E '^(CapPrm|CapEff|CapInh|CapAmb|NoNewPrivs)' /proc/self/status; cat /etc/shadow")
    assert output.count("0000000000000000") == 4
    assert "NoNewPrivs:\t1" in output
    assert "Permission denied" in output


def test_jobs_have_different_users_and_cannot_reach_one_another(link: Link) -> None:
    victim = link.start("/bin/sleep", "1000")
    attempts = (
        f"kill -9 {victim.pid}",
        f"cat /proc/{victim.pid}/environ",
        f"ls {victim.workdir}",
        f"touch {victim.workdir}/x",
        f"ls {os.path.dirname(victim.log_path)}",
    )
    record, output = run(link, "; ".join(f"{attempt} 2>&- && echo done" for attempt in attempts))
    assert (record.uid != victim.uid, output) == (True, "")
    assert link.inspect(victim.job_id).state is State.RUNNING
    link.stop(victim.job_id, force=True)


def test_the_job_s_log_is_out_of_its_reach(link: Link) -> None:
    # By its path, since what is above the root of its own mount is another matter.
    attempts = (
        'd=$(dirname "$PWD"); ls $d/logs && echo done; echo x > $d/logs/y && echo done; rm -r $d/logs $d/job.json'
    )
    record, output = run(link, attempts)
    assert "done" not in output
    assert output.count("ermission denied") >= 2
    directory = os.path.dirname(record.workdir)
    # The flusher comes by.
    assert set(os.listdir(directory)) - {"flushed.json", "flushed.json.new"} == {"job.json", "logs", "work"}
    assert "y" not in os.listdir(f"{directory}/logs")


def freezer(job_id: str) -> CgroupDir:
    """The job's cgroup in a v2 hierarchy, or where there is none to be seen, no test."""
    found = [path for path in cgroups(job_id) if os.path.exists(f"{path}/cgroup.freeze")]
    if not found:
        pytest.skip("the v2 hierarchy here is the agent's own")
    return CgroupDir.open(found[0])


def test_one_that_is_frozen_ends_as_it_is_told(link: Link) -> None:
    job = link.start("/bin/sleep", "1000")
    with contextlib.closing(freezer(job.job_id)) as group:
        group.write("cgroup.freeze", "1")
        until(lambda: "frozen 1" in group.read("cgroup.events"), True)
    ended = link.stop(job.job_id, force=True)
    assert (ended.end_reason, ended.signal) == (EndReason.STOPPED, signal.SIGKILL)


def test_it_is_in_its_cgroup_before_its_first_instruction(link: Link) -> None:
    record = link.start("/bin/sleep", "1000")
    # As the host sees it: the job's own view begins at its cgroup.
    lines = Path(f"/proc/{record.pid}/cgroup").read_text().splitlines()
    link.stop(record.job_id, force=True)
    mine = [line for line in lines if line.endswith(f"/{record.job_id}")]
    assert mine, lines
    if link.welcome.host.cgroup_mode != "v2":
        controllers = {name for line in mine for name in line.split(":")[1].split(",")}
        assert {"cpu", "memory", "pids"} <= controllers


def test_a_work_directory_of_the_host(link: Link) -> None:
    record = link.start("/bin/pwd", workdir="/usr/bin")
    assert link.read_log(link.wait_ended(record.job_id)) == b"/usr/bin\n"


def test_a_command_is_found_in_the_job_s_own_path(link: Link) -> None:
    record = link.start("sh", "-c", "echo found", env=(("PATH", "/nonexistent:/bin"),))
    assert link.read_log(link.wait_ended(record.job_id)) == b"found\n"
    with pytest.raises(StartFailed):
        link.start("sh", "-c", "true", env=(("PATH", "/nonexistent"),))


def test_arguments_that_are_not_utf8_arrive_as_they_are(link: Link) -> None:
    raw = bytes(range(1, 256))
    record = link.start("/usr/bin/printf", "%s", raw.decode("utf-8", "surrogateescape"))
    assert link.read_log(link.wait_ended(record.job_id)) == raw


def test_the_largest_argument_that_linux_takes(link: Link) -> None:
    record = link.start("/usr/bin/printf", "%s", "x" * 131_071)
    assert link.wait_ended(record.job_id).log_bytes == 131_071


REFUSED: list[tuple[tuple[str, ...], dict[str, Any], JobWorkerError]] = [
    (("no-such-command",), {}, StartFailed("exec", "ENOENT", "no-such-command", "")),
    (("/no/such/file",), {}, StartFailed("exec", "ENOENT", "/no/such/file", "")),
    (("/etc/passwd",), {}, StartFailed("exec", "EACCES", "/etc/passwd", "")),
    (("/bin",), {}, StartFailed("exec", "EACCES", "/bin", "")),
    (("/bin/true",), {"workdir": "/no/such/dir"}, StartFailed("chdir", "ENOENT", "/no/such/dir", "")),
    (("/bin/true",), {"workdir": "/etc/passwd"}, StartFailed("chdir", "ENOTDIR", "/etc/passwd", "")),
    (("/bin/true",), {"workdir": "/root"}, StartFailed("chdir", "EACCES", "/root", "")),
    (("",), {}, InvalidField("command", "", "")),
    (("/bin/true", "a\0b"), {}, InvalidField("args[0]", "", "")),
    (("/bin/true", "x" * 200 * 1024), {}, InvalidField("args[0]", "", "")),
    (("/bin/true",), {"limits": Limits(cpu_millis=10_000_000)}, InvalidField("limits.cpu", "", "")),
    (("/bin/true",), {"limits": Limits(memory_bytes=2**50)}, InvalidField("limits.memory", "", "")),
    (("/bin/true",), {"limits": Limits(pids=4_000_000)}, InvalidField("limits.pids", "", "")),
]


@pytest.mark.parametrize(
    ("command", "spec", "expected"), REFUSED, ids=[f"{e!r:.40}-{i}" for i, (_, _, e) in enumerate(REFUSED)]
)
def test_a_refused_start_leaves_nothing(
    link: Link, side: RootSide, command: tuple[str, ...], spec: dict[str, Any], expected: JobWorkerError
) -> None:
    jobs = os.path.join(side.state_dir, "jobs")
    before = set(os.listdir(jobs)), side.open_files(link)
    with pytest.raises(type(expected)) as caught:
        link.start(*command, **spec)
    told, wanted = vars(caught.value), vars(expected)
    assert {name: told[name] for name, value in wanted.items() if value} == {k: v for k, v in wanted.items() if v}
    assert len(str(caught.value)) < 500
    assert (set(os.listdir(jobs)), side.open_files(link)) == before


def test_a_script_without_an_interpreter_line(link: Link, side: RootSide) -> None:
    path = os.path.join(side.settings.isolation.writable[0], "script")
    with open(path, "w") as file:
        file.write("echo hi\n")
    os.chmod(path, 0o755)  # noqa: S103
    try:
        with pytest.raises(StartFailed, match="a script needs a #! line"):
            link.start(path)
    finally:
        os.unlink(path)


def test_unknown_ids(link: Link) -> None:
    for ask in (link.inspect, link.stop):
        with pytest.raises(JobNotFound):
            ask("0000-0000-0000-0000")
        for bad in ("../x", "", "x" * 10240):
            with pytest.raises(InvalidField):
                ask(bad)


def test_an_ended_job_leaves_its_record_and_log_alone(link: Link, side: RootSide) -> None:
    before = side.open_files(link)
    record, _ = run(link, "sleep 0.01 & echo x > file; exit 1")
    assert cgroups(record.job_id) == []
    assert processes_of(record.uid) == []
    assert side.open_files(link) == before
    with pytest.raises(JobAlreadyEnded, match="EXITED"):
        link.stop(record.job_id)


# Stopping.


def test_stop_is_term_first(link: Link) -> None:
    record = link.start("/bin/sh", "-c", "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done")
    link.wait_output(record.job_id)
    ended = link.stop(record.job_id)
    assert (ended.state, ended.end_reason, ended.exit_code) == (State.ENDED, EndReason.STOPPED, 7)
    assert link.read_log(ended).endswith(b"bye\n")


def test_stop_takes_the_whole_tree(link: Link) -> None:
    stubborn = "trap '' TERM; echo $$; while :; do sleep 1000; done"
    script = f"trap '' TERM; setsid sh -c \"setsid sh -c '{stubborn}' & {stubborn}\" & {stubborn}"
    record = link.start("/bin/sh", "-c", script.replace("$$", "\\$\\$"))
    link.wait_output(record.job_id)
    ended = link.stop(record.job_id, grace_ms=100)
    assert (ended.end_reason, ended.signal) == (EndReason.STOPPED, signal.SIGKILL)
    assert processes_of(record.uid) == []
    assert cgroups(record.job_id) == []


def test_a_daemon_that_its_job_has_forked_is_still_the_job(link: Link) -> None:
    script = "(trap '' TERM; setsid sh -c 'trap \"\" TERM; while :; do sleep 1000; done' &) ; exit 4"
    record = link.start("/bin/sh", "-c", script)
    while link.inspect(record.job_id).exit_code is None:
        link.events.append(link.receive().message)
    now = link.inspect(record.job_id)
    assert (now.state, now.exit_code) == (State.RUNNING, 4)
    ended = link.stop(record.job_id, grace_ms=100)
    assert (ended.state, ended.end_reason, ended.exit_code) == (State.ENDED, EndReason.STOPPED, 4)
    assert processes_of(record.uid) == []


def test_a_writer_outside_of_it_does_not_keep_a_job_from_ending(link: Link) -> None:
    record = link.start("/bin/sh", "-c", "echo mine; exec sleep 1000")
    link.wait_output(record.job_id)
    elsewhere = os.open(f"/proc/{record.pid}/fd/1", os.O_WRONLY)
    try:
        os.write(elsewhere, b"not its own\n")
        ended = link.stop(record.job_id, force=True)
        assert (ended.state, ended.output_ended) == (State.ENDED, True)
        # What was there by then is in the log; from now on nobody reads.
        assert link.read_log(ended) == b"mine\nnot its own\n"
        with pytest.raises(BrokenPipeError):
            os.write(elsewhere, b"too late\n")
    finally:
        os.close(elsewhere)


def test_a_stopped_process_is_stopped_for_good(link: Link) -> None:
    record = link.start("/bin/sh", "-c", "echo ready; kill -STOP $$; sleep 1000")
    link.wait_output(record.job_id)
    ended = link.stop(record.job_id)
    assert (ended.end_reason, ended.signal) == (EndReason.STOPPED, signal.SIGTERM)


def test_a_second_stop_hastens_the_first(link: Link) -> None:
    record = link.start("/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done")
    link.wait_output(record.job_id)
    assert link.stop(record.job_id, grace_ms=3_600_000, wait=False).state is State.STOPPING
    assert link.stop(record.job_id, force=True).end_reason is EndReason.STOPPED
    with pytest.raises(JobAlreadyEnded):
        link.stop(record.job_id)


@strace.needs_strace
def test_a_script_hears_of_a_stop_before_the_command_that_it_waits_for(link: Link, side: RootSide) -> None:
    record = link.start("/bin/sh", "-c", "trap 'exit 3' TERM; sleep 1000 & echo up; wait")
    link.wait_output(record.job_id)
    # Between one process and the next, long enough for a script to go on behind what has ended.
    slowly = ("-e", "trace=pidfd_send_signal", "-e", "inject=pidfd_send_signal:delay_exit=300000")
    with strace.attached(side.supervisor_pid(), *slowly):
        assert link.stop(record.job_id).exit_code == 3


def test_a_fork_bomb_is_stopped(link: Link) -> None:
    bomb = "import os\nprint('up', flush=True)\nwhile True:\n  try: os.fork()\n  except OSError: pass\n"
    record = link.start("/usr/bin/python3", "-c", bomb, limits=Limits(pids=200))
    link.wait_output(record.job_id)
    assert link.stop(record.job_id, force=True).state is State.ENDED
    assert processes_of(record.uid) == []


def test_a_timeout(link: Link) -> None:
    record, _ = run(link, "while :; do sleep 0.01; done", timeout_ms=50)
    assert (record.end_reason, record.signal) == (EndReason.TIMED_OUT, signal.SIGTERM)


# Limits.


def test_limits_are_read_back(link: Link) -> None:
    asked = Limits(cpu_millis=500, memory_bytes=64 << 20, pids=50)
    record = link.start("/bin/sleep", "1000", limits=asked)
    told = {limit.name: (limit.requested, limit.value, limit.enforcement.value) for limit in record.limits}
    assert told == {
        "cpu": ("50%", "50%", "ENFORCED"),
        "memory": ("64M", "64M", "ENFORCED"),
        "pids": ("50", "50", "ENFORCED"),
    }
    link.stop(record.job_id, force=True)


def test_a_limit_of_processes_is_there_without_asking(link: Link, side: RootSide) -> None:
    record = link.start("/bin/true")
    (pids,) = record.limits
    assert (pids.name, pids.value) == ("pids", str(side.settings.jobs.default_pids))


def test_too_much_memory_is_oom_killed_and_said_so(link: Link) -> None:
    record = link.start("/usr/bin/python3", "-c", "x = bytearray(200 << 20)", limits=Limits(memory_bytes=32 << 20))
    ended = link.wait_ended(record.job_id)
    assert (ended.end_reason, ended.signal) == (EndReason.OOM_KILLED, signal.SIGKILL)
    assert ended.usage.oom_kills == 1
    assert ended.usage.memory_peak_bytes <= 32 << 20


def test_a_kill_that_is_not_the_kernel_s_is_not_called_oom(link: Link) -> None:
    record, _ = run(link, "kill -9 $$", limits=Limits(memory_bytes=32 << 20))
    assert (record.end_reason, record.signal) == (EndReason.SIGNALED, signal.SIGKILL)
    record, _ = run(link, "exit 137", limits=Limits(memory_bytes=32 << 20))
    assert (record.end_reason, record.exit_code) == (EndReason.EXITED, 137)


def test_too_many_processes_fail_in_the_job(link: Link) -> None:
    script = (
        "import os\ntry:\n  while True:\n    os.fork() or os.pause()\nexcept BlockingIOError:\n  print('full')\n"
    )
    script = script.replace("os.pause()", "__import__('signal').pause()")
    record = link.start("/usr/bin/python3", "-c", script, limits=Limits(pids=10))
    link.wait_output(record.job_id)
    assert link.read_log(link.stop(record.job_id, force=True)).startswith(b"full")


def test_half_a_cpu_is_half_a_cpu(link: Link) -> None:
    # By the job's own account of its CPU time over its own wall time: the load of the machine can only lower it.
    script = (
        "import time\nbegin, used = time.monotonic(), time.process_time()\n"
        "while time.monotonic() - begin < 2: pass\n"
        "print((time.process_time() - used) / (time.monotonic() - begin))\n"
    )
    record = link.start("/usr/bin/python3", "-c", script, limits=Limits(cpu_millis=500))
    ended = link.wait_ended(record.job_id)
    assert float(link.read_log(ended)) < 0.6
    assert ended.usage.cpu_usec > 0

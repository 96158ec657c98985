"""A start that is asked for again makes no second job."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from jobworker.errors import IdempotencyConflict, InvalidField, StartFailed
from jobworker.jobs import EndReason, Idempotency, JobRecord, JobSpec, State
from jobworker.wire import messages
from support.agent import Agent
from support.callers import caller
from support.leftovers import processes_of
from support.link import Link
from support.root_side import RootSide, root_side
from support.waiting import until

pytestmark = pytest.mark.root

SPEC = JobSpec("/bin/sh", ("-c", "sleep 0.2; echo once"))


def request(key: str, digest: str = "d1", principal: str = "p1", spec: JobSpec = SPEC) -> messages.StartJob:
    return messages.StartJob(caller(principal), spec, Idempotency(key, digest))


def test_the_same_key_gets_the_same_job(link: Link) -> None:
    first = link.ask(request("a")).record
    assert link.ask(request("a")).record.job_id == first.job_id
    link.wait_ended(first.job_id)
    again = link.ask(request("a")).record
    assert (again.job_id, again.exit_code) == (first.job_id, 0)


def test_also_while_it_is_being_started(link: Link) -> None:
    numbers = [link.send(request("b")) for _ in range(5)]
    assert len({link.answer(number).message.record.job_id for number in numbers}) == 1


def test_another_request_under_the_same_key_is_refused(link: Link) -> None:
    first = link.ask(request("c")).record
    with pytest.raises(IdempotencyConflict, match=first.job_id):
        link.ask(request("c", digest="d2"))


def test_a_key_is_the_client_s_own(link: Link) -> None:
    ids = {link.ask(request("d", principal=name)).record.job_id for name in ("p1", "p2")}
    assert len(ids) == 2


def test_no_key_makes_a_job_each_time(link: Link) -> None:
    assert len({link.ask(request("", digest="")).record.job_id for _ in range(2)}) == 2


def test_a_start_that_failed_may_be_tried_again(link: Link) -> None:
    for _ in range(2):
        with pytest.raises(StartFailed):
            link.ask(request("e", spec=replace(SPEC, command="/no/such/file")))
    assert link.ask(request("e", digest="d2")).record.job_id


@pytest.mark.parametrize("key", ["a\nb", "x" * 129, "\x00"])
def test_what_is_not_a_key_is_refused(link: Link, key: str) -> None:
    with pytest.raises(InvalidField) as caught:
        link.ask(request(key))
    assert caught.value.field == "idempotency_key"


def test_it_is_remembered_over_a_death(side: RootSide) -> None:
    link = side.link(subscribe=True)
    running = link.ask(request("f", spec=JobSpec("/bin/sleep", ("1000",)))).record
    ended = link.wait_ended(link.ask(request("g")).record.job_id)
    os.kill(side.supervisor_pid(), signal.SIGKILL)
    link.drain()
    link = side.reconnect(subscribe=True)
    assert link.ask(request("f")).record.job_id == running.job_id
    assert link.ask(request("g")).record == ended
    with pytest.raises(IdempotencyConflict):
        link.ask(request("g", digest="d2"))
    link.stop(running.job_id, force=True)


def test_by_the_command_line(agent: Agent) -> None:
    def start(*words: str) -> subprocess.CompletedProcess[bytes]:
        return agent.cli("start", "--idempotency-key", "deploy-7", *words)

    first, second = start("--env", "TOKEN=1", "true"), start("--env", "TOKEN=1", "true")
    assert first.stdout == second.stdout != b""
    other = start("--env", "TOKEN=2", "true")
    assert other.returncode == 1
    assert b"'deploy-7' was used for another request" in other.stderr


# Where the supervisor dies while it starts a job: right before this line of its program.
_MOMENTS = {
    "before the clone": "            pid, pidfd = spawn.start(",
    "after the clone": "            last.callback(os.close, pidfd)\n            if isinstance",
    "when the command has been executed": "        started = time.monotonic()\n        try:\n",
    "before anybody is told": "        self._answer(job)\n        job.announce()",
}
# The new process has hardly begun then, and goes on by itself.
_AT_ONCE = "            if isinstance(group, SubtreeGroup):\n                group.init_is(pid"


def die_once(side: RootSide, line: str, *, pause: float = 0.3) -> None:
    """Have the supervisor that starts next die there, but none after it; a new process may run meanwhile."""
    died = Path(side.package, "died")
    (path,) = (path for path in Path(side.package, "supervisor").glob("launch*.py") if line in path.read_text())
    indent = " " * (len(line) - len(line.lstrip()))
    trap = f"open({str(died)!r}, 'x').close(), time.sleep({pause}), os.kill(os.getpid(), 9)"
    side.change(f"supervisor/{path.name}", line, f"{indent}os.path.exists({str(died)!r}) or ({trap})\n{line}")


@pytest.mark.parametrize("moment", _MOMENTS)
def test_a_command_is_not_executed_twice_whenever_the_supervisor_dies(tmp_path: Path, moment: str) -> None:
    # Jobs are other users, and pass through here.
    tmp_path.chmod(0o755)
    counted = tmp_path / "counted"
    counted.touch()
    counted.chmod(0o666)
    with root_side(str(tmp_path), own_package=True) as side:
        spec = JobSpec("/bin/sh", ("-c", f"echo executed >> {counted}; echo once; exit 3"))
        die_once(side, _MOMENTS[moment])
        os.kill(side.supervisor_pid(), signal.SIGKILL)
        link = side.reconnect()
        link.send(request("f", spec=spec))
        link.drain()
        link = side.reconnect(subscribe=True)
        again: JobRecord = link.ask(request("f", spec=spec)).record
        ended = again if again.state is State.ENDED else link.wait_ended(again.job_id)
        executed = counted.read_text().count("executed")
        assert (ended.exit_code, link.read_log(ended), executed) == (3, b"once\n", 1)
        assert link.ask(request("f", spec=spec)).record.job_id == ended.job_id


@pytest.mark.parametrize("moment", ["when the command has been executed", "before anybody is told"])
def test_a_start_without_a_key_that_nobody_was_told_of_leaves_nothing(tmp_path: Path, moment: str) -> None:
    with root_side(str(tmp_path), own_package=True) as side:
        die_once(side, _MOMENTS[moment])
        os.kill(side.supervisor_pid(), signal.SIGKILL)
        link = side.reconnect()
        link.send(request("", digest="", spec=JobSpec("/bin/sleep", ("1000",))))
        link.drain()
        side.reconnect(subscribe=True)
        assert os.listdir(os.path.join(side.state_dir, "jobs")) == []
        jobs = side.settings.jobs
        # What was killed takes its time to die.
        until(lambda: processes_of(range(jobs.first_uid, jobs.first_uid + jobs.uid_count)), [])


def test_a_process_that_has_hardly_begun_is_taken_over(tmp_path: Path) -> None:
    with root_side(str(tmp_path), own_package=True) as side:
        die_once(side, _AT_ONCE, pause=0)
        # The process comes to report when nobody is left to read that.
        spawning = Path(side.package, "kernel", "spawn.py")
        joined = "            group.join(cloned_into=cloned_into)\n"
        assert joined in spawning.read_text()
        late = f"{joined}            __import__('time').sleep(0.3)\n"
        spawning.write_text(spawning.read_text().replace(joined, late))
        os.kill(side.supervisor_pid(), signal.SIGKILL)
        link = side.reconnect()
        spec = JobSpec("/bin/sh", ("-c", "echo once; exit 3"))
        link.send(request("g", spec=spec))
        link.drain()
        link = side.reconnect(subscribe=True)
        ended = link.wait_ended(link.ask(request("g", spec=spec)).record.job_id)
        assert (ended.end_reason, ended.exit_code) == (EndReason.EXITED, 3)
        assert link.read_log(ended) == b"once\n"

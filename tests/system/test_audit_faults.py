"""What the audit trails of an agent live through: deaths, upgrades, full disks, floods."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from jobworker.errors import HostFault
from jobworker.jobs import JobSpec
from jobworker.settings.schema import AuditSettings
from jobworker.wire import messages
from support.disks import on_disk
from support.link import CALLER, DEADLINE
from support.root_side import RootSide, root_side
from support.trails import audit, events, names, of, report, wait_for_line
from support.waiting import until

pytestmark = pytest.mark.root

MIB = 1 << 20


def test_the_supervisor_is_killed_over_and_over(own_side: RootSide) -> None:
    started: list[str] = []
    for number in range(8):
        link = own_side.reconnect(subscribe=True)
        pid = own_side.supervisor_pid()
        requests = [
            messages.StartJob(CALLER, JobSpec("/bin/sh", ("-c", f"exit {number}"))),
            messages.ReportCalls((report(),) * 8, 0),
        ]
        for index in range(6):
            link.send(requests[index % 2])
        with suppress(ConnectionError):
            for _ in range(number):
                answer = link.receive().message
                if isinstance(answer, messages.JobReply):
                    started.append(answer.record.job_id)
        os.kill(pid, signal.SIGKILL)
        link.drain()
        link.close()
    link = own_side.reconnect(subscribe=True)
    for job_id in started:
        link.wait_ended(job_id)
    run = audit(own_side.state_dir, "verify")
    assert run.returncode in (0, 3), run.stdout
    jobs = events(own_side.state_dir, "jobs")
    assert names(jobs).count("agent_started") == 9
    for job_id in started:
        # Each once, whichever life wrote it.
        assert names(of(job_id, jobs)).count("job_started") == 1
        assert names(of(job_id, jobs)).count("job_ended") + names(of(job_id, jobs)).count("job_lost") == 1


def test_an_upgrade_goes_on_with_the_chain(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/bin/sleep", "1000")
    link.ask(messages.Upgrade())
    link.drain()
    link.close()
    link = own_side.reconnect(subscribe=True)
    link.stop(record.job_id, force=True)
    jobs = events(own_side.state_dir, "jobs")
    wanted = ["job_started", "owner_asked", "agent_ending", "agent_started", "stop_asked", "job_ended"]
    assert [name for name in names(jobs) if name in wanted] == ["agent_started", *wanted]
    assert audit(own_side.state_dir, "verify").returncode == 0


def test_a_shutdown_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with root_side(str(tmp_path)) as side:
        link = side.link(subscribe=True)
        record = link.start("/bin/sleep", "1000")
    lines = events(side.state_dir, "jobs")
    assert names(lines)[-3:] == ["job_stopping", "job_ended", "agent_ending"]
    head = Path(side.state_dir, "audit", "jobs.head").read_text()
    assert head == f"{lines[-1]['seq']}:{lines[-1]['hash']}\n"
    assert f'"audit anchor", "anchor": "jobs:{head.strip()}"' in side.log()
    assert of(record.job_id, lines)
    run = audit(side.state_dir, "verify", "--anchor", f"jobs:{head.strip()}")
    assert run.returncode == 0, run.stdout


def on_small_disk(directory: Path, **settings: Any) -> AbstractContextManager[RootSide]:
    """An agent whose trails are on a small file system of their own."""
    directory.chmod(0o755)
    return on_disk(directory, "size=256k", place="state/audit", audit=AuditSettings(**settings))


def fill(side: RootSide) -> Path:
    path = Path(side.state_dir, "audit", "fill")
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with suppress(OSError), open(path, "ab", buffering=0) as file:
        file.write(b"0")
    return path


def test_a_full_disk(tmp_path: Path) -> None:
    with on_small_disk(tmp_path) as side:
        link = side.link(subscribe=True)
        filled = fill(side)
        # Jobs are started and stopped as ever; what is in memory is bounded.
        started = [link.start("/bin/sh", "-c", "exit 0", "x" * 7_000).job_id for _ in range(80)]
        for job_id in started:
            link.wait_ended(job_id)
        assert "audit trail not written" in side.log()
        assert audit(side.state_dir, "verify").returncode in (0, 1)
        filled.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", filled.parent], check=True)
        until(lambda: "audit trail is written again" in side.log(), True, DEADLINE)
        jobs = events(side.state_dir, "jobs")
        lost = sum(line["lines"] for line in jobs if line["event"] == "lines_lost")
        written = sum(name in ("job_started", "job_ended") for name in names(jobs))
        assert lost > 20
        assert written + lost == 160
        run = audit(side.state_dir, "verify")
        assert run.returncode == 3
        assert "lines are missing here: ENOSPC" in run.stdout


def test_a_full_disk_and_a_supervisor_that_is_killed_or_upgraded(tmp_path: Path) -> None:
    with on_small_disk(tmp_path) as side:
        link = side.link(subscribe=True)
        filled = fill(side)
        for how in ("kill", "upgrade", "kill"):
            for _ in range(3):
                link.wait_ended(link.start("/bin/true").job_id)
            if how == "kill":
                os.kill(side.supervisor_pid(), signal.SIGKILL)
            else:
                link.ask(messages.Upgrade())
            link.drain()
            link.close()
            link = side.reconnect(subscribe=True)
        filled.unlink()
        last = link.start("/bin/true").job_id
        link.wait_ended(last)
        wait_for_line(side.state_dir, "jobs", lambda line: line["event"] == "job_ended" and line["job"] == last)
        run = audit(side.state_dir, "verify")
        assert run.returncode in (0, 3), run.stdout
        # Each end of a job is told, late, by a supervisor that finds it on record and not in the trail.
        jobs = events(side.state_dir, "jobs", damaged=True)
        assert len({line["job"] for line in jobs if line["event"] == "job_ended"}) == 10


def test_no_start_without_a_record_where_that_is_wanted(tmp_path: Path) -> None:
    with on_small_disk(tmp_path, required=True) as side:
        link = side.link(subscribe=True)
        running = link.start("/bin/sleep", "1000")
        asked, *_ = [line for line in events(side.state_dir, "jobs") if line["event"] == "start_asked"]
        assert (asked["command"], asked["args"], asked["claimed"]) == (
            "/bin/sleep",
            ["1000"],
            {"principal": CALLER.principal, "role": "WRITER", "serial": CALLER.serial, "peer": CALLER.peer},
        )
        filled = fill(side)
        directories = set(os.listdir(Path(side.state_dir, "jobs")))
        refused = 0
        for _ in range(40):
            # What fits the last block still does.
            with suppress(HostFault):
                link.start("/bin/true", "x" * 1_000)
                continue
            refused += 1
        assert refused > 30
        with pytest.raises(HostFault, match="failed at writing the audit trail: ENOSPC"):
            link.start("/bin/true")
        assert len(set(os.listdir(Path(side.state_dir, "jobs"))) - directories) == 40 - refused
        assert link.stop(running.job_id, force=True).ended_ns
        filled.unlink()
        assert link.wait_ended(link.start("/bin/true").job_id).exit_code == 0


def test_files_are_rotated_under_load(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with root_side(str(tmp_path), audit=AuditSettings(max_bytes=20_000, keep=5)) as side:
        link = side.link(subscribe=True)
        for _ in range(25):
            link.wait_ended(link.start("/bin/sh", "-c", "exit 0", "x" * 7_000).job_id)
        assert len(list(Path(side.state_dir, "audit").glob("jobs.log.*"))) == 5
        run = audit(side.state_dir, "verify")
        assert run.returncode == 0, run.stdout
        assert "are not here to be checked" in run.stdout
        assert side.log().count('"audit anchor"') > 6


def test_a_trail_that_can_t_be_opened_keeps_no_agent_from_starting(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    place = tmp_path / "state" / "audit"
    place.parent.mkdir()
    place.write_text("not a directory")
    with root_side(str(tmp_path)) as side:
        link = side.link(subscribe=True)
        assert link.wait_ended(link.start("/bin/sh", "-c", "exit 4").job_id).exit_code == 4
        assert "audit trail not written" in side.log()
        place.unlink()
        until(Path(side.state_dir, "audit", "jobs.log").exists, True, DEADLINE)
        ended = wait_for_line(side.state_dir, "jobs", lambda line: line["event"] == "job_ended")
        assert ended["exit_code"] == 4

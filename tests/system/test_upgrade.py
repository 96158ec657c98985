"""New code in place: jobs, bytes and exit codes unharmed, and a version that does not start refused."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobworker.cli import service
from jobworker.cli.owner_link import OwnerLink
from jobworker.errors import AgentUnavailable, ProtocolError, UpgradeRefused
from jobworker.jobs import EndReason
from jobworker.sandbox import Applied
from jobworker.wire import messages
from support.leftovers import cgroups, descriptors
from support.link import DEADLINE
from support.root_side import RootSide, fresh_root_side, root_side
from support.strace import attached, needs_strace, without_processes

pytestmark = pytest.mark.root


@pytest.fixture
def own_side() -> Iterator[RootSide]:
    """Keeper and supervisor that run a copy of the package, which the test changes."""
    with fresh_root_side(own_package=True) as running:
        yield running


def test_from_one_version_to_the_next_and_back(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    old, pids = link.welcome.version, (own_side.keeper.pid, own_side.supervisor_pid())
    script = "i=0; until [ -e enough ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 5"
    idle = descriptors(pids[0])
    records = [link.start("/bin/sh", "-c", script) for _ in range(5)]
    # Nobody waits until the keeper has taken what it is handed: two pipes and a pidfd for each.
    own_side.wait_for(lambda: descriptors(pids[0]) == idle + 3 * len(records))
    before = descriptors(pids[0]), own_side.open_files(link)
    for version in ("9.9.9", old, "10.0.0"):
        own_side.set_version(version)
        link = own_side.upgrade(link)
        assert link.welcome.version == version
        assert (own_side.keeper.pid, own_side.supervisor_pid()) == pids
    # Logs are opened again when there is something to write.
    own_side.wait_for(lambda: (descriptors(pids[0]), own_side.open_files(link)) == before)
    for record in records:
        Path(record.workdir, "enough").touch()
        ended = link.wait_ended(record.job_id)
        assert (ended.end_reason, ended.exit_code, ended.pid) == (EndReason.EXITED, 5, record.pid)
        lines = link.read_log(ended).decode().splitlines()
        assert lines == [str(i) for i in range(len(lines))]
        assert lines


def test_a_version_that_speaks_otherwise_is_taken_over_from(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/bin/sleep", "1000")
    path = Path(own_side.package) / "wire" / "messages.py"
    ours = path.read_text()
    path.write_text(ours.replace(f"PROTOCOL = {messages.PROTOCOL}\n", "PROTOCOL = 999\n"))
    own_side.set_version("0.0.1")
    link.ask(messages.Upgrade())
    link.drain()
    own_side.wait_for(lambda: running_version(own_side) == "0.0.1")
    with pytest.raises(ProtocolError, match="999 is understood"):
        own_side.link()
    path.write_text(ours)
    own_side.set_version("0.0.2")
    assert service.upgrade_in(own_side.settings.socket_path) == ("0.0.1", "0.0.2")
    assert own_side.link().stop(record.job_id).end_reason is EndReason.STOPPED


def running_version(side: RootSide) -> str:
    try:
        with contextlib.closing(OwnerLink(side.settings.socket_path)) as link:
            return link.version
    except (OSError, AgentUnavailable):
        return ""


def test_told_to_end_in_the_middle_of_it_the_agent_ends(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    link.start("/bin/sleep", "1000")
    own_side.freeze_keeper()
    link.ask(messages.Upgrade())
    own_side.keeper.send_signal(signal.SIGTERM)
    own_side.thaw_keeper()
    assert own_side.keeper.wait(DEADLINE) == 0


def test_the_keeper_is_new_as_well(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/bin/sh", "-c", "read x; sleep 1000; exit 3")
    assert "--resume-fd" not in own_side.keeper_arguments()
    link = own_side.upgrade(link)
    own_side.wait_for(lambda: "--resume-fd" in own_side.keeper_arguments())
    # It holds what it held: the death of the supervisor costs nothing.
    os.kill(own_side.supervisor_pid(), 9)
    link.drain()
    link.close()
    link = own_side.reconnect(subscribe=True)
    assert link.stop(record.job_id).end_reason is EndReason.STOPPED
    assert own_side.close() == 0


@pytest.mark.parametrize("damage", ["syntax", "crash", "missing"])
def test_a_version_that_does_not_start_is_refused(own_side: RootSide, damage: str) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/bin/sleep", "1000")
    path = Path(own_side.package) / "supervisor" / "registry.py"
    good = path.read_text()
    if damage == "missing":
        path.unlink()
    else:
        path.write_text({"syntax": "def (:\n", "crash": "raise RuntimeError('no')\n"}[damage])
    pid = own_side.supervisor_pid()
    with pytest.raises(UpgradeRefused) as caught:
        link.ask(messages.Upgrade())
    expected = {"syntax": "SyntaxError", "crash": "RuntimeError: no", "missing": "ModuleNotFoundError"}
    assert expected[damage] in caught.value.problem
    assert own_side.supervisor_pid() == pid
    path.write_text(good)
    assert link.start("/bin/true").started_ns
    assert link.stop(record.job_id).end_reason is EndReason.STOPPED


def test_an_interpreter_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.symlink_to(os.path.realpath(sys.executable))
    with root_side(str(tmp_path), python=str(python)) as side:
        link = side.link(subscribe=True)
        record = link.start("/bin/sleep", "1000")
        pids = side.keeper.pid, side.supervisor_pid()
        os.rename(python, tmp_path / "gone")
        with pytest.raises(UpgradeRefused, match=f"No such file or directory: '{python}'"):
            link.ask(messages.Upgrade())
        assert (side.keeper.pid, side.supervisor_pid()) == pids
        # Nor is there one for the next supervisor.
        os.kill(pids[1], signal.SIGKILL)
        link.drain()
        side.wait_for(lambda: "cannot start a supervisor" in side.log())
        os.rename(tmp_path / "gone", python)
        link = side.upgrade(side.reconnect())
        assert link.stop(record.job_id).end_reason is EndReason.STOPPED


@needs_strace
def test_a_keeper_without_a_process_for_its_proof_is_new_later(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/bin/sleep", "1000")
    with without_processes(own_side.keeper.pid) as tries:
        link = own_side.upgrade(link)
        own_side.wait_for(lambda: tries() > 1)
        assert "--resume-fd" not in own_side.keeper_arguments()
    own_side.wait_for(lambda: "--resume-fd" in own_side.keeper_arguments())
    assert own_side.log().count("keeper: cannot be upgraded: [Errno 11]") == 1
    assert link.stop(record.job_id).end_reason is EndReason.STOPPED


@needs_strace
def test_told_to_end_while_it_executes_itself_the_keeper_ends(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    job = link.start("/bin/sleep", "1000")
    program, begun = Path(own_side.package, "keeper", "__main__.py"), Path(own_side.state_dir, "begun")
    wait = f"if '--resume-fd' in sys.argv: open({str(begun)!r}, 'w').close(); __import__('time').sleep(0.5)\n"
    program.write_text(program.read_text().replace("import sys\n", f"import sys\n{wait}", 1))
    # So that the one before knows already that the new supervisor serves.
    with without_processes(own_side.keeper.pid) as tries:
        own_side.upgrade(link)
        before = tries()
        own_side.wait_for(lambda: tries() > before + 1)
    own_side.wait_for(begun.exists)
    assert own_side.close() == 0
    assert cgroups(job.job_id) == []


@needs_strace
def test_without_a_process_for_the_stand_in_output_waits(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    script = "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 5"
    record, pid = link.start("/bin/sh", "-c", script), own_side.supervisor_pid()
    # The C library makes the proof's process by clone too then; the stand-in's is the second one.
    faults = ("inject=clone3:error=ENOSYS", "inject=clone:error=EAGAIN:when=2")
    with attached(pid, "-o", "/dev/null", "-e", "trace=clone,clone3", "-e", faults[0], "-e", faults[1]):
        link = own_side.upgrade(link)
    assert own_side.supervisor_pid() == pid
    ended = link.wait_ended(record.job_id)
    assert (ended.exit_code, ended.lost_bytes) == (5, 0)
    assert link.read_log(ended) == "".join(f"{i}\n" for i in range(200)).encode()


def test_a_record_from_the_future_refuses_an_upgrade(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.wait_ended(link.start("/bin/true").job_id)
    path = Path(own_side.state_dir) / "jobs" / record.job_id / "job.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"format": 999, "invented": True}))
    with pytest.raises(UpgradeRefused, match="written by a later version"):
        link.ask(messages.Upgrade())
    assert json.loads(path.read_text())["format"] == 999, "it is left as it was"


def test_a_state_from_the_future_is_refused(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.wait_ended(link.start("/bin/true").job_id)
    path = Path(own_side.state_dir) / "format"
    present = path.read_text()
    path.write_text("999")
    with pytest.raises(UpgradeRefused, match="written by a later version"):
        link.ask(messages.Upgrade())
    assert own_side.close() == 0
    with pytest.raises(RuntimeError, match=r"written by a later version \(format 999, .* start that version"):
        RootSide(os.path.dirname(own_side.state_dir))
    assert path.read_text() == "999", "it is left as it was"
    path.write_text(present)
    own_side.start_again()
    assert own_side.link().inspect(record.job_id) == record


@pytest.mark.parametrize("format_file", [None, "", "nonsense", "1", "9" * 5000])
def test_a_state_that_does_not_tell_its_format_is_read(own_side: RootSide, format_file: str | None) -> None:
    link = own_side.link(subscribe=True)
    record = link.wait_ended(link.start("/bin/true").job_id)
    path = Path(own_side.state_dir) / "format"
    present = path.read_text()
    assert own_side.close() == 0
    path.unlink()
    if format_file is not None:
        path.write_text(format_file)
    own_side.start_again()
    assert own_side.link().inspect(record.job_id) == record
    assert path.read_text() == present


def test_a_state_of_the_past_is_read(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    running = link.start("/bin/sleep", "1000")
    ended = link.wait_ended(link.start("/bin/true").job_id)
    own_side.freeze_keeper()
    os.kill(own_side.supervisor_pid(), signal.SIGKILL)
    link.drain()
    for job_id in (running.job_id, ended.job_id):
        path = Path(own_side.state_dir) / "jobs" / job_id / "job.json"
        stored = json.loads(path.read_text())
        # Before jobs had sandboxes, profiles of limits, and the ids of requests, and stops their signals.
        del stored["unsent"]
        for name in ("sandbox", "profile", "request_id"):
            del stored["record"][name]
        path.write_text(json.dumps(stored | {"format": 1}))
    own_side.thaw_keeper()
    link = own_side.reconnect(subscribe=True)
    assert link.inspect(ended.job_id) == replace(ended, sandbox=Applied(), request_id="")
    assert link.stop(running.job_id, force=True).end_reason is EndReason.STOPPED


# The new version lets the job begin, and goes on once it is through.
_WAIT = """
import time
if "--stand-in-fd" in sys.argv:
    open({work!r} + "/go", "w").close()
while "--stand-in-fd" in sys.argv and not os.path.exists({work!r} + "/through"):
    time.sleep(0.01)
"""


def test_output_moves_while_the_next_version_starts(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    size = 8 << 20
    script = f"while [ ! -e go ]; do sleep 0.05; done; head -c {size} /dev/zero; touch through"
    record = link.start("/bin/sh", "-c", script)
    wait = _WAIT.format(work=os.path.join(own_side.state_dir, "jobs", record.job_id, "work"))
    program = Path(own_side.package, "supervisor", "__main__.py")
    program.write_text(program.read_text().replace("import sys\n", f"import sys\n{wait}", 1))
    link = own_side.upgrade(link)
    ended = link.wait_ended(record.job_id)
    assert (ended.exit_code, ended.log_bytes, ended.lost_bytes) == (0, size, 0)
    assert link.read_log(ended) == bytes(size)

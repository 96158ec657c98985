"""Where no process can be made, what needs one is tried again, and no job is lost."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from jobworker.errors import HostFault, UpgradeRefused
from jobworker.jobs import EndReason, State
from jobworker.wire import messages
from support.gates import gate, open_gate
from support.link import CALLER, DEADLINE
from support.root_side import RootSide, root_side
from support.strace import needs_strace, without_processes

pytestmark = pytest.mark.root


@needs_strace
def test_no_process_for_the_next_supervisor(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    going_on = link.start("/bin/sh", "-c", f"echo begun; read x < {gate(own_side, 1)}; echo done; exit 4")
    ending = link.start("/bin/sh", "-c", f"read x < {gate(own_side, 2)}; echo done; exit 5")
    with without_processes(own_side.keeper.pid) as tries:
        os.kill(own_side.supervisor_pid(), signal.SIGKILL)
        link.drain()
        open_gate(own_side, 2)
        # It is reaped meanwhile, so that its process can be another's.
        own_side.wait_for(lambda: tries() > 1 and not os.path.exists(f"/proc/{ending.pid}"))
    link.close()
    link = own_side.reconnect(subscribe=True)
    open_gate(own_side, 1)
    for record, code, output in ((going_on, 4, b"begun\ndone\n"), (ending, 5, b"done\n")):
        ended = link.wait_ended(record.job_id)
        assert (ended.end_reason, ended.exit_code) == (EndReason.EXITED, code)
        assert link.read_log(ended) == output
    assert own_side.log().count("cannot start a supervisor: [Errno 11]") == 1


@needs_strace
def test_no_process_for_anything(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    ended, running = link.wait_ended(link.start("/bin/true").job_id), link.start("/bin/sleep", "1000")
    pid = own_side.supervisor_pid()
    with without_processes(own_side.keeper.pid), without_processes(pid) as tries:
        link.ask(messages.DeleteJob(CALLER, ended.job_id))
        own_side.wait_for(lambda: tries() > 0)
        with pytest.raises(HostFault, match="EAGAIN"):
            link.start("/bin/true")
        with pytest.raises(UpgradeRefused, match="Resource temporarily unavailable"):
            link.ask(messages.Upgrade())
        assert link.inspect(running.job_id).state is State.RUNNING
    own_side.wait_for(lambda: not os.listdir(os.path.join(own_side.state_dir, "removed")))
    assert own_side.supervisor_pid() == pid
    assert link.stop(running.job_id).end_reason is EndReason.STOPPED


def test_a_keeper_without_jobs_ends_if_it_can_start_no_supervisor(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.symlink_to(os.path.realpath(sys.executable))
    with root_side(str(tmp_path), python=str(python)) as side:
        python.unlink()
        os.kill(side.supervisor_pid(), signal.SIGKILL)
        assert side.keeper.wait(DEADLINE) == 1
        why = f"keeper: cannot start a supervisor: [Errno 2] No such file or directory: '{python}'"
        assert side.log().splitlines()[-1] == why


@needs_strace
def test_no_process_for_the_next_flusher(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/bin/sh", "-c", "while :; do echo x; sleep 0.05; done")
    supervisor, pid = own_side.supervisor_pid(), own_side.flusher_pid()
    with without_processes(supervisor) as tries:
        os.kill(pid, signal.SIGKILL)
        own_side.wait_for(lambda: tries() > 1)
    own_side.wait_for(lambda: own_side.flusher_pid() != pid)
    assert own_side.supervisor_pid() == supervisor
    assert own_side.log().count("no flusher could be started") == 1
    assert link.stop(record.job_id).end_reason is EndReason.STOPPED

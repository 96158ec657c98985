"""A stop that is under way when the supervisor dies or executes another program goes on as it was asked for."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from jobworker.jobs import EndReason, State
from jobworker.wire import messages
from support.link import CALLER, Link
from support.root_side import RootSide, root_side

pytestmark = pytest.mark.root

HOUR_MS = 3_600_000
# A number above that of TERM: of those that wait Python calls the handler of the lowest first.
LAST = signal.SIGWINCH
TELLS = f"""
import signal
for number in (1, 2, 15, {int(LAST)}):
    signal.signal(number, lambda number, frame: print(number, flush=True))
print("up", flush=True)
while True:
    signal.pause()
"""


def output(link: Link, job_id: str, wanted: bytes) -> bytes:
    """What the job has written, once this is in it."""
    while wanted not in (found := link.read_log(link.inspect(job_id))):
        pass
    return found


def kill_at(side: RootSide, job_id: str) -> float:
    """Seconds from now, by the job's record."""
    stored = json.loads(Path(side.state_dir, "jobs", job_id, "job.json").read_text())
    return float(stored["kill_at"]) - time.monotonic()


def test_no_other_signal_comes_and_the_grace_stays(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/usr/bin/python3", "-c", TELLS)
    output(link, record.job_id, b"up\n")
    link.ask(messages.StopJob(CALLER, record.job_id, signal.SIGINT, HOUR_MS, force=False))
    output(link, record.job_id, b"2\n")
    link = own_side.kill_supervisor(link)
    assert link.inspect(record.job_id).state is State.STOPPING
    link.ask(messages.SignalJob(CALLER, record.job_id, LAST, everyone=False))
    assert output(link, record.job_id, b"28\n") == b"up\n2\n28\n"
    assert HOUR_MS / 2000 < kill_at(own_side, record.job_id) < HOUR_MS / 1000
    # It can be hastened, and that is kept as well.
    link.stop(record.job_id, grace_ms=60_000, wait=False)
    assert 0 < kill_at(own_side, record.job_id) < 60
    link = own_side.kill_supervisor(link)
    ended = link.stop(record.job_id, force=True)
    assert ended.signal == signal.SIGKILL


def test_a_signal_that_could_not_be_sent_any_more_is_sent(tmp_path: Path) -> None:
    with root_side(str(tmp_path), own_package=True) as side:
        died, line = Path(side.package, "died"), "            stopping.signal(signum)\n"
        trap = f"open({str(died)!r}, 'x').close(), os.kill(os.getpid(), 9)"
        side.change("supervisor/job.py", line, f"            os.path.exists({str(died)!r}) or ({trap})\n{line}")
        os.kill(side.supervisor_pid(), signal.SIGKILL)
        link = side.reconnect(subscribe=True)
        script = "trap 'echo told' INT; trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done"
        record = link.start("/bin/sh", "-c", script)
        output(link, record.job_id, b"up\n")
        link.send(messages.StopJob(CALLER, record.job_id, signal.SIGINT, HOUR_MS, force=False))
        link.drain()
        link = side.reconnect(subscribe=True)
        output(link, record.job_id, b"told\n")
        # And once: what comes after is told that it was.
        link = side.kill_supervisor(link)
        assert link.inspect(record.job_id).state is State.STOPPING
        link.ask(messages.SignalJob(CALLER, record.job_id, signal.SIGTERM, everyone=False))
        ended = link.wait_ended(record.job_id)
        assert (ended.end_reason, ended.exit_code) == (EndReason.STOPPED, 3)
        assert link.read_log(ended) == b"up\ntold\n"


def test_a_grace_that_is_over_meanwhile_is_over(own_side: RootSide) -> None:
    link = own_side.link(subscribe=True)
    record = link.start("/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 100; done")
    output(link, record.job_id, b"up\n")
    link.stop(record.job_id, grace_ms=1, wait=False)
    link = own_side.kill_supervisor(link)
    assert link.wait_ended(record.job_id).signal == signal.SIGKILL

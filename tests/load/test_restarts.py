"""Jobs that write all the time, through a supervisor's death, an upgrade, and the way back: byte for byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobworker.jobs import EndReason
from support.leftovers import processes_with
from support.root_side import fresh_root_side
from support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

JOBS = 200
# bash waits for its pipe without another process, which hundreds of writers would spend the machine on.
SCRIPT = 'exec 3<> <(:); i=0; until [ -e enough ]; do echo "line $i"; i=$((i+1)); read -t 0.1 -u 3; done; exit 7'


def test_hundreds_of_writers_notice_nothing() -> None:
    with fresh_root_side(own_package=True) as side:
        link = side.link(subscribe=True)
        old = link.welcome.version
        records = [link.start("/bin/bash", "-c", SCRIPT) for _ in range(JOBS)]
        link = side.kill_supervisor(link)
        for version in ("9.9.9", old):
            side.set_version(version)
            link = side.upgrade(link)
            assert link.welcome.version == version
        for record in records:
            Path(record.workdir, "enough").touch()
        for record in records:
            ended = link.wait_ended(record.job_id)
            assert (ended.end_reason, ended.exit_code, ended.pid) == (EndReason.EXITED, 7, record.pid)
            lines = link.read_log(ended).decode().splitlines()
            assert lines == [f"line {number}" for number in range(len(lines))]
            assert (bool(lines), ended.lost_bytes) == (True, 0)
        assert side.close() == 0
        # Nobody waits for what only flushes.
        until(lambda: processes_with(os.path.dirname(side.state_dir)), [])

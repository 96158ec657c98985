"""What becomes of ended jobs that the disk would not let go, and of what others put among the removed ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from jobworker.jobs import JobRecord, State
from jobworker.settings.schema import JobSettings
from jobworker.supervisor import retention as retention_module
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.supervisor.retention import Retention
from jobworker.supervisor.space import Space
from jobworker.supervisor.store import Store

pytestmark = pytest.mark.usefixtures("one_life")

IDS = ("k7f3-9m2q-x4tz-b1cd", "k7f3-9m2q-x4tz-b1ce", "k7f3-9m2q-x4tz-b1cf")


def ended(job_id: str) -> JobRecord:
    uid = os.getuid()
    return JobRecord(
        job_id,
        "who",
        "true",
        (),
        (),
        (),
        "/",
        0,
        uid=uid,
        pid=0,
        state=State.ENDED,
        created_ns=1,
        ended_ns=2,
    )


def test_it_goes_once_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "_GATHER", 0.01)
    monkeypatch.setattr(retention_module, "_TRY_AGAIN", 0.01)
    loop, store, space = Loop(), Store(str(tmp_path)), Space(0, 0)
    gone: list[str] = []
    in_the_way = tmp_path / "removed" / f"{IDS[0]}.{os.getuid()}"

    def forget(job_id: str) -> None:
        gone.append(job_id)
        if len(gone) == 1:
            (in_the_way / "file").rmdir()
            in_the_way.rmdir()
        else:
            loop.stop()

    def ignore(_uid: int) -> None:
        pass

    settings = JobSettings(keep_ended=1, keep_ms=0)
    retention = Retention(loop, Log("error"), store, space, settings, forget, ignore, ignore)
    retention.begin()
    (in_the_way / "file").mkdir(parents=True)
    for number, job_id in enumerate(IDS):
        store.create_job(job_id, None)
        (tmp_path / "jobs" / job_id / "logs" / "log").write_text("output")
        retention.add(ended(job_id), float(number))
    loop.run()
    assert gone == [IDS[1], IDS[0]]
    assert space.ended == 6


def test_what_others_have_put_among_the_removed_jobs_is_left_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loop, store, space = Loop(), Store(str(tmp_path)), Space(0, 0)
    left: list[int] = []
    removed: list[int] = []
    strange = ["lost+found", f"{IDS[0]}.x", f"{IDS[0]}.-1", f"{IDS[0]}.", "old.7", ".7", f"{IDS[0]}.7.bak", "²"]
    for name in (*strange, f"{IDS[0]}.7"):
        (tmp_path / "removed" / name / "below").mkdir(parents=True)

    def is_removed(uid: int) -> None:
        removed.append(uid)
        loop.stop()

    def ignore(_job_id: str) -> None:
        pass

    retention = Retention(loop, Log("info"), store, space, JobSettings(), ignore, left.append, is_removed)
    retention.begin()
    loop.run()
    assert left == removed == [7]
    assert sorted(os.listdir(tmp_path / "removed")) == sorted(strange)
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["names"] == sorted(strange)

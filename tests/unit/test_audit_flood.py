"""What others make the supervisor write is bounded, and what is left out is counted."""

from __future__ import annotations

import os
from pathlib import Path

from jobworker.budget import Budget
from jobworker.settings.schema import AuditSettings
from jobworker.supervisor.audit import Audit
from jobworker.supervisor.log import Log
from jobworker.supervisor.loop import Loop
from jobworker.wire.callers import Caller, CallReport
from jobworker.wire.messages import MAX_REPORTS, ReportCalls
from support.trails import events

_CALL = CallReport(
    "call",
    Caller("spiffe://test/user/w"),
    "/x/Y",
    allowed=True,
    code="OK",
    reason="",
    detail="",
    job_id="",
    at_ns=0,
    took_ms=0,
)


def test_a_budget() -> None:
    now = 0.0
    budget = Budget(rate=2, burst=3, now=lambda: now)
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    now = 0.5
    assert [budget.take() for _ in range(2)] == [True, False]
    now = 1000.0
    assert [budget.take() for _ in range(4)] == [True, True, True, False]


def test_a_flood_of_calls(tmp_path: Path) -> None:
    loop, place = Loop(), tmp_path / "audit"
    place.mkdir()

    def opened() -> int:
        return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    budget = Budget(rate=0.001, burst=100)
    audit = Audit(loop, Log("error"), AuditSettings(), opened, (0, 0), lambda _: None, budget)
    audit.begin()
    sent = 0
    while sent < 3_000:
        audit.reported(ReportCalls((_CALL,) * MAX_REPORTS, 0))
        sent += MAX_REPORTS
    # Jobs' lines have their own room.
    audit.removed("k7f3-9m2q-x4tz-b1cd")
    loop.call_after(2.5, loop.stop)
    loop.run()
    calls = events(str(tmp_path), "calls")
    written = sum(line["event"] == "call" for line in calls)
    (dropped,) = [line["lines"] for line in calls if line["event"] == "calls_dropped"]
    assert written + dropped == sent
    assert written == 100
    assert events(str(tmp_path), "jobs")[-1]["event"] == "job_removed"

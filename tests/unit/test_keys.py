"""Which job a client's key stands for, when jobs have come and gone."""

from __future__ import annotations

import pytest

from jobworker.jobs import Idempotency, JobRecord, State
from jobworker.supervisor.keys import Keys

IDS = ("k7f3-9m2q-x4tz-b1cd", "k7f3-9m2q-x4tz-b1ce")
KEY = Idempotency("nightly", "digest")


def record(job_id: str) -> JobRecord:
    state = State.PENDING
    return JobRecord(job_id, "who", "true", (), (), (), "/", 0, uid=0, pid=0, state=state, created_ns=1)


@pytest.mark.parametrize("first", [0, 1])
def test_two_jobs_on_record_with_one_key(first: int) -> None:
    keys = Keys()
    for job_id in IDS:
        keys.remember(record(job_id), KEY)
    keys.forget(IDS[first])
    assert keys.find("who", KEY) == (IDS[1] if first == 0 else None)
    keys.forget(IDS[1 - first])
    assert keys.find("who", KEY) is None

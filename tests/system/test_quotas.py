"""What the jobs of one principal may be together: held to by root, whatever the gateway says."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from jobworker.errors import QuotaExceeded
from jobworker.jobs import JobRecord, JobSpec
from jobworker.limits import Limits
from jobworker.settings.schema import QuotaSettings
from jobworker.wire.messages import Failed, JobReply, StartJob
from support.callers import caller
from support.link import Link
from support.root_side import RootSide, root_side

pytestmark = pytest.mark.root

MIB = 1 << 20
ANN, BOB = caller("spiffe://test/user/ann"), caller("spiffe://test/user/bob")


@pytest.fixture
def side() -> Iterator[RootSide]:
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        quotas = QuotaSettings(active_jobs=2, jobs_memory_bytes=100 * MIB)
        with root_side(directory, quotas=quotas) as running:
            yield running


def start(link: Link, who: Any, memory: int | None = None, seconds: int = 1000) -> JobRecord:
    spec = JobSpec("/bin/sleep", (str(seconds),), limits=Limits(memory_bytes=memory))
    record: JobRecord = link.ask(StartJob(who, spec)).record
    return record


def refusal(link: Link, who: Any, memory: int | None = None) -> tuple[str, int, int, int]:
    with pytest.raises(QuotaExceeded) as caught:
        start(link, who, memory)
    error = caught.value
    return error.quota, error.limit, error.present, error.retry_ms


def test_running_jobs_of_one_principal(side: RootSide) -> None:
    link = side.link(subscribe=True)
    first, _ = start(link, ANN), start(link, ANN)
    assert refusal(link, ANN) == ("active_jobs", 2, 2, 0)
    start(link, BOB)
    # What is adopted counts as before, and what has ended does not.
    os.kill(side.supervisor_pid(), signal.SIGKILL)
    link.drain()
    link = side.reconnect(subscribe=True)
    assert refusal(link, ANN) == ("active_jobs", 2, 2, 0)
    link.stop(first.job_id, force=True)
    assert link.wait_ended(start(link, ANN, seconds=0).job_id).exit_code == 0


def test_starts_that_are_under_way_count(side: RootSide) -> None:
    link = side.link()
    request = StartJob(ANN, JobSpec("/bin/sleep", ("1000",)))
    asked = [link.send(request) for _ in range(8)]
    # Refusals overtake the starts.
    answers = [link.receive().message for _ in asked]
    assert [type(each) for each in answers].count(JobReply) == 2
    assert {each.error for each in answers if isinstance(each, Failed)} == {"QuotaExceeded"}


def test_a_start_that_fails_gives_its_place_back(side: RootSide) -> None:
    link = side.link()
    start(link, ANN)
    for _ in range(3):
        with pytest.raises(Exception, match="ENOENT"):
            link.ask(StartJob(ANN, JobSpec("/no/such/program")))
    start(link, ANN)


def test_memory_of_one_principals_jobs(side: RootSide) -> None:
    link = side.link(subscribe=True)
    first = start(link, ANN, 64 * MIB)
    assert refusal(link, ANN, 37 * MIB) == ("jobs_memory", 100 * MIB, 64 * MIB, 0)
    start(link, BOB, 100 * MIB)
    start(link, ANN, 36 * MIB)
    link.stop(first.job_id, force=True)
    start(link, ANN, 64 * MIB)

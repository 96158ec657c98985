"""The agent's types as messages of the contract."""

from __future__ import annotations

import pytest

from jobworker.api.v1 import job_pb2
from jobworker.gateway import outgoing
from jobworker.jobs import EndReason, State, Usage
from jobworker.limits import Enforcement, LimitStatus
from jobworker.wire.host import LimitSupport
from support.scripted_supervisor import record


@pytest.mark.parametrize("state", State)
def test_states(state: State) -> None:
    job = outgoing.job(record(state=state))
    assert job_pb2.JobState.Name(job.state) == f"JOB_STATE_{state.value}"


@pytest.mark.parametrize("reason", EndReason)
def test_end_reasons(reason: EndReason) -> None:
    job = outgoing.job(record(end_reason=reason))
    assert job_pb2.EndReason.Name(job.end_reason) == f"END_REASON_{reason.value}"


@pytest.mark.parametrize("enforcement", Enforcement)
def test_limits(enforcement: Enforcement) -> None:
    limits = (LimitStatus("cpu", "50%", "49%", enforcement, "why"),)
    (limit,) = outgoing.job(record(limits=limits)).limits
    assert (limit.name, limit.requested, limit.value, limit.detail) == ("cpu", "50%", "49%", "why")
    assert job_pb2.Enforcement.Name(limit.enforcement) == f"ENFORCEMENT_{enforcement.value}"
    support = outgoing.limit_support(LimitSupport("cpu", enforcement, "why", "1%", "200%"))
    assert (support.name, support.default_value, support.maximum) == ("cpu", "1%", "200%")
    assert support.enforcement == limit.enforcement


def test_what_has_not_happened_is_not_set() -> None:
    job = outgoing.job(record())
    for name in ("started_at", "ended_at", "timeout", "exit_code", "signal"):
        assert not job.HasField(name)
    assert job.end_reason == job_pb2.END_REASON_UNSPECIFIED


def test_an_exit_code_of_0_is_set() -> None:
    job = outgoing.job(record(exit_code=0, signal=0))
    assert (job.HasField("exit_code"), job.HasField("signal")) == (True, True)


def test_times_and_sizes() -> None:
    usage = Usage(cpu_usec=1_500_001, memory_peak_bytes=7, oom_kills=2, throttled_usec=3)
    job = outgoing.job(record(ended_ns=1_700_000_000_123_456_789, timeout_ms=1_500, usage=usage))
    assert job.ended_at.ToNanoseconds() == 1_700_000_000_123_456_789
    assert job.timeout.ToMilliseconds() == 1_500
    assert job.usage.cpu_time.ToMicroseconds() == 1_500_001
    assert job.usage.throttled_time.ToMicroseconds() == 3
    assert (job.usage.memory_peak_bytes, job.usage.oom_kills) == (7, 2)


def test_every_other_field_is_taken_over() -> None:
    known = record(
        args=("a", "b"),
        env_names=("PATH",),
        labels=(("k", "v"),),
        detail="d",
        stuck=True,
        log_path="/l",
        log_bytes=9,
        output_ended=True,
        lost_bytes=3,
    )
    job = outgoing.job(known)
    for name in ("command", "workdir", "principal", "uid", "pid", "detail", "stuck", "log_path", "log_bytes"):
        assert getattr(job, name) == getattr(known, name)
    assert (job.id, job.output_ended, job.lost_bytes) == (known.job_id, True, 3)
    assert (list(job.args), list(job.env_names), dict(job.labels)) == (["a", "b"], ["PATH"], {"k": "v"})


def test_a_path_that_is_not_text_is_told_all_the_same() -> None:
    job = outgoing.job(record(log_path="/sr\udcff/ü", detail="é"))
    assert (job.log_path, job.detail) == ("/sr?/ü", "é")
    job.SerializeToString()
